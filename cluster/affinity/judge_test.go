package affinity

import (
	"net/netip"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// A client of two VIPs has one record. The program sees none at the other VIP
// and tells the same with every packet: it must be kept quiet, not only told
// that somebody else was first.
func TestJudgeOfAnotherVIP(t *testing.T) {
	a := newAgreement(t)
	a.must(state.PutVIP{VIP: state.VIP{Name: "other", Addr: netip.MustParseAddr("203.0.113.20"), ClientBits: 64}})
	vip, _ := a.View().Spec().VIPByName("other")
	a.must(state.PutBackend{Backend: state.Backend{Name: "far", VIP: vip.ID, Addr: netip.MustParseAddr("198.51.100.150"), Weight: 100, Admin: state.AdminEnabled}})
	far, _ := a.View().Spec().BackendByName("far")
	a.verdict(far.ID, state.VerdictUp)
	near := a.View().Spec().Backends[0]
	a.must(state.Learn{Records: []state.Learned{{Key: stateKey(key(1)), Backend: near.ID, State: state.Confirmed}}})

	_, answer := Judge(a.View(), evidence(1, table.Slot(far.Slot), 0, table.Confirmed, false))
	if answer != table.Refused {
		t.Errorf("evidence at another VIP is answered %d, want refused", answer)
	}
	second := a.View().Spec().Backends[1]
	_, answer = Judge(a.View(), evidence(1, table.Slot(second.Slot), 0, table.Confirmed, false))
	if answer != table.Superseded {
		t.Errorf("evidence of another server of the same VIP is answered %d, want superseded", answer)
	}
}

// Payload of TCP may replace, whether or not the program calls it an opening;
// a tunnel's packet may not.
func TestJudgeTCP(t *testing.T) {
	a := newAgreement(t)
	v := a.View().Spec().VIPs[0]
	v.SSTP = state.SSTPPassthrough
	a.must(state.PutVIP{VIP: v, Expect: v.Version})
	old, anew := a.View().Spec().Backends[0], a.View().Spec().Backends[1]
	for _, c := range []struct {
		class table.Class
		want  table.Answer
	}{{table.IKE, table.Superseded}, {table.TCP, 0}} {
		e := evidence(1, table.Slot(anew.Slot), table.Slot(old.Slot), table.Confirmed, false)
		e.Class = c.class
		a.must(state.Learn{Records: []state.Learned{{Key: stateKey(e.Key), Backend: old.ID, State: state.Confirmed}}})
		l, answer := Judge(a.View(), e)
		if c.class == table.TCP && (!l.Opening || l.Replaces == 0 || l.Backend != anew.ID) || answer != c.want {
			t.Errorf("class %d: %+v, answer %d, want %d", c.class, l, answer, c.want)
		}
	}
}
