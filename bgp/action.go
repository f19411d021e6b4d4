package bgp

// Action is what to do with the route of one VIP, from least to most wanted.
// The order is meaningful: a larger action attracts more traffic.
type Action uint8

const (
	// Withdraw: no route. The zero value, so that nothing is announced by
	// accident.
	Withdraw Action = iota
	// Drain: announced as the last choice, with GRACEFUL_SHUTDOWN (RFC 8326)
	// and a prepend on eBGP, local preference 0 on iBGP.
	Drain
	// Demote: announced, but any undemoted node is preferred. Routers that
	// have only demoted routes use all of them.
	Demote
	// Announce: the normal route.
	Announce
	actionCount
)

var actionNames = [actionCount]string{"withdraw", "drain", "demote", "announce"}

// String gives the metric label.
func (a Action) String() string {
	if a < actionCount {
		return actionNames[a]
	}
	return "invalid"
}

// MarshalText lets an Action appear by name in JSON and in logs.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Reason names why a Decision is as it is. The strings are metric labels and
// appear in status output: they never change their meaning.
type Reason uint8

const (
	ReasonNone       Reason = iota // no decision yet
	OK                             // everything holds
	NotCaughtUp                    // the maps may be older than what the cluster agreed
	ColdStart                      // forwards from the stored state, no leader was found: demoted
	StateTooOld                    // cold start refused: the stored state is older than the limit
	PlaneNotAttached               // nothing would forward
	SelfCheckFailed                // attached, but a test packet did not come out as it should
	NoBackends                     // nothing to forward to
	NoQuorum                       // no leader for longer than T1: demoted
	ReachDoubt                     // cannot reach a server that the cluster calls up: demoted
	ReachNone                      // cannot reach any server that the cluster calls up
	LeaseGap                       // the process stood still longer than the lease, no leader confirmed since
	Draining                       // leaving: announced as the last choice
	Stopping                       // the last step of leaving or stopping
	Removed                        // the cluster removed this node
	Parked                         // this node took itself out (unknown command, fenced disk)
	VIPRemoved                     // the cluster spec names the VIP no longer
	ServiceFailed                  // a service that this node itself gives at the VIP does not work here
	NotProbed                      // just started: not known yet whether it reaches the servers
	reasonCount
)

var reasonNames = [reasonCount]string{
	"none", "ok", "not_caught_up", "cold_start", "state_too_old",
	"plane_not_attached", "self_check_failed", "no_backends", "no_quorum",
	"reach_doubt", "reach_none", "lease_gap", "draining", "stopping", "removed", "parked",
	"vip_removed", "service_failed", "not_probed",
}

// String gives the metric label.
func (r Reason) String() string {
	if r < reasonCount {
		return reasonNames[r]
	}
	return "invalid"
}

// MarshalText lets a Reason appear by name in JSON and in logs.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Reasons lists every reason a Decision can have, for metrics and docs.
func Reasons() []Reason {
	out := make([]Reason, 0, reasonCount-1)
	for r := OK; r < reasonCount; r++ {
		out = append(out, r)
	}
	return out
}
