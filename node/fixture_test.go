package node

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares with testdata/NAME.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (-update writes it):\n%s", path, got)
	}
}

// rig is a state machine with a log of its own: it makes specs and deltas as
// consensus would.
type rig struct {
	t        *testing.T
	m        *state.Machine
	index    uint64
	sequence uint64
}

var (
	nodeA = state.NodeID{0xa, 15: 1}
	nodeB = state.NodeID{0xb, 15: 2}
)

func memberOf(id state.NodeID, name string, addrs ...string) state.Member {
	m := state.Member{
		ID: id, Name: name, Role: state.RoleNode, Cluster: name + ".example:7950", Gossip: name + ".example:7946",
		PublicKey: bytes.Repeat([]byte{id[0]}, 32), Format: state.Format,
	}
	for _, a := range addrs {
		m.Addrs = append(m.Addrs, netip.MustParseAddr(a))
	}
	return m
}

// newRig gives a cluster of one node.
func newRig(t *testing.T) *rig {
	r := blankRig(t)
	r.do(state.Init{
		ClusterID: state.ClusterID{1, 2, 3}, HashKey: [16]byte{7, 9}, TableSize: 251,
		Settings: state.DefaultSettings(), First: memberOf(nodeA, "a", "198.51.100.1", "192.0.2.11"),
	})
	return r
}

// blankRig gives a machine that nothing was agreed on.
func blankRig(t *testing.T) *rig { return &rig{t: t, m: state.NewMachine(), index: 1} }

// do applies commands in one log entry and gives what changed.
func (r *rig) do(cmds ...state.Command) state.Delta {
	r.t.Helper()
	r.index++
	b := state.Batch{Stamp: state.Time(r.index) * 1e9}
	for _, c := range cmds {
		r.sequence++
		b.Envelopes = append(b.Envelopes, state.Envelope{Origin: nodeA, Boot: 1, Sequence: r.sequence, Command: c})
	}
	applied, err := r.m.Apply(r.index, state.EncodeBatch(b))
	if err != nil {
		r.t.Fatal(err)
	}
	for i, o := range applied.Outcomes {
		if o.Code != state.OK {
			r.t.Fatalf("%T: %s", cmds[i], o.Detail)
		}
	}
	return applied.Delta
}

func (r *rig) spec() *state.Spec { return r.m.View().Spec() }

func (r *rig) vip(name, addr string) state.VIPID {
	r.t.Helper()
	r.do(state.PutVIP{VIP: state.VIP{Name: name, Addr: netip.MustParseAddr(addr), ClientBits: 64}})
	v, _ := r.spec().VIPByName(name)
	return v.ID
}

func (r *rig) backend(name, addr string, vip state.VIPID) state.Backend {
	r.t.Helper()
	r.do(state.PutBackend{Backend: state.Backend{Name: name, Addr: netip.MustParseAddr(addr), VIP: vip, Weight: 100, Admin: state.AdminEnabled}})
	b, _ := r.spec().BackendByName(name)
	return *b
}

func (r *rig) verdict(name string, v state.Verdict) {
	r.t.Helper()
	b, _ := r.spec().BackendByName(name)
	r.do(state.SetHealth{Backend: b.ID, Class: state.ClassIKE, Verdict: v, Previous: b.Health[state.ClassIKE-1].Index})
}

// learn records a client on a server.
func (r *rig) learn(client string, b state.BackendID) state.Delta {
	r.t.Helper()
	return r.do(state.Learn{Records: []state.Learned{{Key: keyOf(client), Backend: b, State: state.Confirmed}}})
}

func keyOf(client string) state.Key {
	return state.Key{Client: state.ClientOf(netip.MustParseAddr(client), 64), Class: state.ClassIKE}
}
