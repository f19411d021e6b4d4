package affinity

import (
	"context"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// View is what this package reads of an immutable view of the agreement.
// *state.View implements it.
type View interface {
	Spec() *state.Spec
	Affinity(state.Key) (state.Affinity, bool)
}

// Proposer makes the cluster agree on commands; one outcome for each. An error
// means that nothing is known: there is no leader, or the answer was lost.
type Proposer interface {
	Propose(ctx context.Context, cmds ...state.Command) ([]state.Outcome, error)
}

// stateKey names the record of a data plane key.
func stateKey(k table.Key) state.Key {
	return state.Key{Client: state.Client(k.Client), Class: state.Class(k.Class)}
}

// tableKey is its inverse.
func tableKey(k state.Key) table.Key {
	return table.Key{Client: [16]byte(k.Client), Class: table.Class(k.Class)}
}

// backendOf finds the holder of a slot.
func backendOf(s *state.Spec, slot table.Slot) (state.BackendID, bool) {
	b, ok := s.BackendBySlot(state.Slot(slot))
	if !ok {
		return 0, false
	}
	return b.ID, true
}

// Limits and paces, each with its reason.
const (
	MaxPending     = 64 << 10               // evidence waiting for an answer: the size of a mass login; the rest is offered again
	MaxBatchLearn  = 512                    // records in one proposal: one fsync carries a tenth of a second of logins
	MaxInFlight    = 4                      // proposals under way: hides the round trip, keeps the leader's queue short
	Linger         = 5 * time.Millisecond   // most that the first of a batch waits for company
	ProposeTimeout = 5 * time.Second        // then its outcome is unknown and it is proposed anew
	minBackoff     = 50 * time.Millisecond  // after a failed proposal, doubling
	maxBackoff     = time.Second            // as long as an election takes
	MaxBatchTouch  = 1000                   // records in one Touch or Expire
	MaxActive      = 1 << 20                // clients whose activity is held: as many as a node's affinity map
	touchAgain     = 10 * time.Second       // between two touches of one client at least: the own view may lag
	timeGrain      = 2 * time.Second        // records keep whole seconds, and a node guesses cluster time
	touchTick      = time.Second            // between two looks at held activity
	expireTick     = 10 * time.Second       // between two sweeps when nothing is due
	expireBusyTick = 100 * time.Millisecond // while a sweep finds a full batch
)
