package node

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/state"
)

// A removal changes the gossip key also where the command that asked for it was
// cut short after its word was in the log. A node uses the new key only when all
// who are alive understand it.
func TestVirtualRemovalChangesTheKey(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		gone := others(nodes, leader)[0]
		rest := others(nodes, gone)
		tw.isolate(gone)
		old, err := leader.m.openSecret(secretGossip)
		if err != nil {
			t.Fatal(err)
		}
		leader.propose(state.RemoveMember{ID: gone.m.self})
		var first string
		tw.eventually(20*time.Second, "all use a new key", func() bool {
			raw, err := leader.m.openSecret(secretGossip)
			if err != nil || bytes.Equal(raw, old) {
				return false
			}
			first = cluster.KeyID(raw[:gossipKeyBytes])
			using, knowing := 0, 0
			for _, v := range rest {
				ids := v.m.gossip.Load().KeyIDs()
				if ids[0] == first {
					using++
				}
				if slices.Contains(ids, first) {
					knowing++
				}
			}
			if using > 0 && knowing < len(rest) {
				t.Fatalf("%d nodes use a key that only %d of %d understand", using, knowing, len(rest))
			}
			return using == len(rest)
		})
		for _, v := range rest {
			if n := len(v.m.hints()); n != 1 {
				t.Errorf("%s hears %d others", v.host, n)
			}
		}
		if first == cluster.KeyID(old[:gossipKeyBytes]) {
			t.Error("the key in use is the old one")
		}
	})
}
