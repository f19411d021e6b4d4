package gateway

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Times of asking on the segment. Each question is one broadcast of 42 bytes, or
// one multicast of 86.
const (
	askHeld   = 5 * time.Second        // own addresses: has somebody else one, too?
	askOther  = 500 * time.Millisecond // others' addresses: does the owner answer?
	askUrgent = 200 * time.Millisecond // the same while there is no leader
	// askPeer is for members whose MAC is not known; one that stays silent is
	// asked half as often each time, down to askPeerAgain.
	askPeer      = 2 * time.Second
	askPeerAgain = 30 * time.Second       // members whose MAC is known: it may change
	askSuspect   = 500 * time.Millisecond // all members, while a MAC is not known
)

// A node asks no more than this in a second, however large the cluster: the
// questions of all nodes together grow with their number, not with its square.
// Where there is more to ask, everything is asked less often, and silence takes
// longer to prove. Too low: large clusters fail over late. Too high: hosts on the
// segment are kept busy with broadcasts.
const (
	questionRate       = 10.0
	questionRateUrgent = 25.0 // without a leader
	// questionBurst is how many may go at once after a pause; at a start everything
	// is due.
	questionBurst = 4.0
)

// question is one address that should be asked for again and again.
type question struct {
	addr  netip.Addr
	every time.Duration
	now   bool // an owner waits for the answer: first, and not slowed down
}

// ask asks the segment what Decide will want to know.
func (k *Keeper) ask(a *Agreement, f *Facts, now time.Time) {
	list := k.questions(a, f)
	keep := make(map[netip.Addr]bool, len(list))
	for _, q := range list {
		keep[q.addr] = true
	}
	k.watch.forget(keep)
	rate := questionRate
	if !f.Confirmed {
		rate = questionRateUrgent
	}
	slow(list, rate)
	k.credit = min(k.credit+rate*now.Sub(k.last).Seconds(), questionBurst)
	for _, q := range k.watch.overdue(list, now) {
		if k.credit < 1 {
			break
		}
		if err := k.segment.Ask(q.addr); err != nil {
			k.deps.Log.Debug("ask for an address", "addr", q.addr, "err", err)
			s := k.watch.of(q.addr)
			s.asked, s.every, s.open = now, q.every, time.Time{} // not asked: silence proves nothing
			continue
		}
		k.credit--
		k.watch.asked(q.addr, q.every, now)
	}
}

// questions lists every address of interest, with its interval in a small cluster.
func (k *Keeper) questions(a *Agreement, f *Facts) []question {
	var list []question
	for _, g := range f.Gateways {
		q := question{addr: g.Addr, every: askOther}
		switch {
		case g.Held:
			q.every = askHeld
		case g.Owner == k.cfg.Self && g.Holder == HolderUnknown:
			q.every, q.now = askUrgent, true
		case !f.Confirmed:
			q.every = askUrgent
		}
		list = append(list, q)
	}
	suspicious := k.watch.suspicious()
	for _, addr := range slices.SortedFunc(maps.Keys(k.neighbours(a)), netip.Addr.Compare) {
		q := question{addr: addr, every: askPeerAgain}
		s := k.watch.addrs[addr]
		switch {
		case suspicious:
			q.every = askSuspect
		case s == nil:
			q.every = askPeer
		case s.answered.IsZero():
			q.every = min(askPeer<<min(s.misses, 10), askPeerAgain)
		}
		list = append(list, q)
	}
	return list
}

// neighbours are the members' addresses on the inside segment: the others
// cannot answer there.
func (k *Keeper) neighbours(a *Agreement) map[netip.Addr]state.NodeID {
	out := map[netip.Addr]state.NodeID{}
	for _, p := range a.Peers {
		for _, addr := range p.Addrs {
			if slices.ContainsFunc(k.inside, func(n netip.Prefix) bool { return n.Contains(addr) }) {
				out[addr] = p.ID
			}
		}
	}
	return out
}

// slow stretches the intervals alike, so that there are at most rate questions
// per second.
func slow(list []question, rate float64) {
	sum := 0.0
	for _, q := range list {
		if !q.now {
			sum += 1 / q.every.Seconds()
		}
	}
	if sum <= rate {
		return
	}
	for i := range list {
		if !list[i].now {
			list[i].every = time.Duration(float64(list[i].every) * sum / rate)
		}
	}
}

// overdue gives the questions that are due, those first that are so for longest.
func (w *segmentWatch) overdue(list []question, now time.Time) []question {
	by := func(q question) time.Duration {
		s := w.addrs[q.addr]
		if s == nil {
			s = &watched{} // never asked: for ever
		}
		return now.Sub(s.asked) - q.every
	}
	due := slices.DeleteFunc(list, func(q question) bool { return by(q) < 0 })
	slices.SortStableFunc(due, func(a, b question) int {
		if a.now != b.now && a.now {
			return -1
		} else if a.now != b.now {
			return 1
		}
		return cmp.Compare(by(b), by(a))
	})
	return due
}
