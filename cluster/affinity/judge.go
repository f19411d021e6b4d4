package affinity

import (
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Judge turns one evidence into the record to propose, or into an answer when
// there is nothing to propose (the answer is 0 when there is). It is pure.
//
// It only saves work: Apply judges the same again, with the permits. What the
// program saw (Saw) guards against a view that has moved on: a record that is
// neither what it saw nor what it asks for supersedes the evidence.
func Judge(v View, e table.Evidence) (state.Learned, table.Answer) {
	spec := v.Spec()
	id, ok := backendOf(spec, e.Slot)
	if !ok {
		return state.Learned{}, table.Superseded // the server is gone for good
	}
	want := state.Learned{
		Key: stateKey(e.Key), Backend: id,
		State: state.Confirmation(e.Level), Opening: e.Opening,
	}
	// Payload of TCP opens as an IKE_AUTH response does: the client has answered
	// the server's SYN, so it is there, and it began anew.
	want.Opening = want.Opening || want.Class == state.ClassTCP
	r, ok := v.Affinity(want.Key)
	counts := ok
	if ok {
		b, listed := spec.BackendByID(r.Backend)
		counts = listed && spec.Stance(b, want.Class).Known()
	}
	switch {
	case !counts: // none, or void: an insert needs no permit
		return want, 0
	case r.Backend == id && r.State >= want.State:
		return state.Learned{}, table.Stored
	case r.Backend == id: // raise
		want.Replaces = r.Index
		return want, 0
	case e.Saw == 0 && !sameVIP(spec, r.Backend, id):
		// A client of two VIPs has one record. The program never sees it at the
		// other VIP and would ask again with every packet.
		return state.Learned{}, table.Refused
	case e.Saw == 0: // somebody else was first
		return state.Learned{}, table.Superseded
	}
	saw, ok := backendOf(spec, e.Saw)
	if !ok || saw != r.Backend || !want.Opening {
		return state.Learned{}, table.Superseded
	}
	want.Replaces = r.Index
	return want, 0
}

func sameVIP(spec *state.Spec, a, b state.BackendID) bool {
	x, okX := spec.BackendByID(a)
	y, okY := spec.BackendByID(b)
	return okX && okY && x.VIP == y.VIP
}
