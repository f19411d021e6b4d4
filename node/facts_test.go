package node

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster/health"
	"github.com/vpnlb/vpnlb/cluster/state"
)

func TestVIPFacts(t *testing.T) {
	ids := func(r *rig, names ...string) (out []state.BackendID) {
		for _, n := range names {
			b, _ := r.spec().BackendByName(n)
			out = append(out, b.ID)
		}
		return out
	}
	remove := func(r *rig, name string) {
		b, _ := r.spec().BackendByName(name)
		r.do(state.RemoveBackend{ID: b.ID, Expect: b.Version})
	}
	admin := func(r *rig, name string, a state.AdminState) {
		b, _ := r.spec().BackendByName(name)
		r.do(state.SetBackendAdmin{ID: b.ID, Admin: a, Expect: b.Version})
	}
	for name, c := range map[string]struct {
		change func(*rig)
		reach  func(*rig) health.Reached
		want   bgp.VIPFacts
	}{
		"not judged yet": {want: bgp.VIPFacts{Backends: 2, Usable: 2}},
		"all up": {
			change: func(r *rig) { r.verdict("r1", state.VerdictUp); r.verdict("r2", state.VerdictUp) },
			want:   bgp.VIPFacts{Backends: 2, Usable: 2, Up: 2, Reached: 2},
		},
		"one down": {
			change: func(r *rig) { r.verdict("r1", state.VerdictUp); r.verdict("r2", state.VerdictDown) },
			want:   bgp.VIPFacts{Backends: 2, Usable: 1, Up: 1, Reached: 1},
		},
		"all down: the tables are not emptied": {
			change: func(r *rig) { r.verdict("r1", state.VerdictDown); r.verdict("r2", state.VerdictDown) },
			want:   bgp.VIPFacts{Backends: 2, Usable: 2},
		},
		"missed by this node alone": {
			change: func(r *rig) { r.verdict("r1", state.VerdictUp); r.verdict("r2", state.VerdictUp) },
			reach:  func(r *rig) health.Reached { return health.Reached{Alone: ids(r, "r2")} },
			want:   bgp.VIPFacts{Backends: 2, Usable: 2, Up: 2, Reached: 1, Doubtful: true},
		},
		"cut off": {
			change: func(r *rig) { r.verdict("r1", state.VerdictUp); r.verdict("r2", state.VerdictUp) },
			reach: func(r *rig) health.Reached {
				return health.Reached{AlsoLost: ids(r, "r1", "r2"), CutOff: true, Doubts: true}
			},
			want: bgp.VIPFacts{Backends: 2, Usable: 2, Up: 2, Doubtful: true},
		},
		"missed by everybody": {
			change: func(r *rig) { r.verdict("r1", state.VerdictUp); r.verdict("r2", state.VerdictUp) },
			reach:  func(r *rig) health.Reached { return health.Reached{AlsoLost: ids(r, "r1", "r2")} },
			want:   bgp.VIPFacts{Backends: 2, Usable: 2, Up: 2},
		},
		"a server of another VIP is missed": {
			change: func(r *rig) { r.verdict("r1", state.VerdictUp); r.verdict("l1", state.VerdictUp) },
			reach:  func(r *rig) health.Reached { return health.Reached{Alone: ids(r, "l1")} },
			want:   bgp.VIPFacts{Backends: 2, Usable: 1, Up: 1, Reached: 1},
		},
		"draining counts as up": {
			change: func(r *rig) {
				r.verdict("r1", state.VerdictUp)
				r.verdict("r2", state.VerdictUp)
				admin(r, "r2", state.AdminDrain)
			},
			want: bgp.VIPFacts{Backends: 2, Usable: 2, Up: 2, Reached: 2},
		},
		"offline does not": {
			change: func(r *rig) {
				r.verdict("r1", state.VerdictUp)
				r.verdict("r2", state.VerdictUp)
				admin(r, "r2", state.AdminOffline)
			},
			want: bgp.VIPFacts{Backends: 2, Usable: 1, Up: 1, Reached: 1},
		},
		"removed with a client": {
			change: func(r *rig) {
				r.verdict("r1", state.VerdictUp)
				r.verdict("r2", state.VerdictUp)
				r.learn("198.18.0.1", ids(r, "r2")[0])
				remove(r, "r2")
			},
			want: bgp.VIPFacts{Backends: 2, Usable: 1, Up: 1, Reached: 1},
		},
		"both removed": {
			change: func(r *rig) { remove(r, "r1"); remove(r, "r2") },
			want:   bgp.VIPFacts{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			vpn := r.vip("vpn", "203.0.113.10")
			lab := r.vip("lab", "203.0.113.20")
			r.backend("r1", "198.51.100.101", vpn)
			r.backend("r2", "198.51.100.102", vpn)
			r.backend("l1", "198.51.100.111", lab)
			if c.change != nil {
				c.change(r)
			}
			var reach health.Reached
			if c.reach != nil {
				reach = c.reach(r)
			}
			v, _ := r.spec().VIPByID(vpn)
			if got := vipFacts(r.spec(), v, &reach); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestContacts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newContacts()
		time.Sleep(700 * time.Millisecond)
		if c.ever(nodeA) || c.silence(nodeA) != 700*time.Millisecond {
			t.Errorf("never heard: ever %v, silent for %v", c.ever(nodeA), c.silence(nodeA))
		}
		c.mark(nodeA)
		c.mark(nodeB)
		time.Sleep(250 * time.Millisecond)
		c.mark(nodeB)
		if !c.ever(nodeA) || c.silence(nodeA) != 250*time.Millisecond || c.silence(nodeB) != 0 {
			t.Errorf("silences %v and %v", c.silence(nodeA), c.silence(nodeB))
		}
		c.keep([]state.Member{{ID: nodeB}})
		if c.ever(nodeA) || !c.ever(nodeB) {
			t.Error("keep forgot the wrong one")
		}
		if c.silence(nodeA) != 950*time.Millisecond {
			t.Errorf("a member that was forgotten is silent for %v", c.silence(nodeA))
		}
	})
}

func TestHeartbeatSeesAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h heartbeat
		time.Sleep(time.Hour) // before the first beat nothing can have stood still
		h.beat()
		for range 100 {
			time.Sleep(statusInterval)
			h.beat()
		}
		if !h.gapSince().IsZero() {
			t.Error("a gap in a steady heartbeat")
		}
		time.Sleep(lease)
		h.beat()
		if !h.gapSince().IsZero() {
			t.Error("a pause of just the lease is a gap")
		}
		time.Sleep(lease + time.Millisecond)
		h.beat()
		if !h.gapSince().Equal(time.Now()) {
			t.Errorf("the gap ended at %v, not now", h.gapSince())
		}
		end := time.Now()
		time.Sleep(statusInterval)
		h.beat()
		if !h.gapSince().Equal(end) {
			t.Error("the next beat moved the gap")
		}
	})
	if statusInterval >= lease {
		t.Error("the beats come too seldom to tell a gap")
	}
}
