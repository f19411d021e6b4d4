package health

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Observer is the latest observation of one node, by local receipt.
type Observer struct {
	Member      state.NodeID
	Age         time.Duration // since it was received here
	Heard       time.Duration // for how long without a gap above ObservationFresh
	Observation Observation
}

// Collector keeps the latest observation of each node, this one included. Safe
// for concurrent use.
type Collector struct {
	began time.Time
	mu    sync.Mutex
	from  map[state.NodeID]received
}

type received struct {
	at, since time.Time
	o         Observation
}

// NewCollector makes an empty one.
func NewCollector() *Collector {
	return &Collector{began: time.Now(), from: map[state.NodeID]received{}}
}

// Listening is for how long it has been there to receive anything.
func (c *Collector) Listening() time.Duration { return time.Since(c.began) }

// Receive takes an observation whose origin was authenticated. It reports
// false for one that is not newer than what is known.
func (c *Collector) Receive(from state.NodeID, o Observation) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was, known := c.from[from]
	if known && (o.Boot < was.o.Boot || o.Boot == was.o.Boot && o.Sequence <= was.o.Sequence) {
		return false
	}
	if !known && len(c.from) >= state.MaxMembers {
		c.dropOldest()
	}
	now := time.Now()
	r := received{at: now, since: now, o: o}
	if known && o.Boot == was.o.Boot && now.Sub(was.at) <= ObservationFresh {
		r.since = was.since
	}
	c.from[from] = r
	return true
}

func (c *Collector) dropOldest() {
	var oldest state.NodeID
	var at time.Time
	for id, r := range c.from {
		if at.IsZero() || r.at.Before(at) {
			oldest, at = id, r.at
		}
	}
	delete(c.from, oldest)
}

// Observers lists all, by member.
func (c *Collector) Observers() []Observer {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	all := make([]Observer, 0, len(c.from))
	for id, r := range c.from {
		ob := Observer{Member: id, Age: now.Sub(r.at), Observation: r.o}
		if ob.Age <= ObservationFresh {
			ob.Heard = now.Sub(r.since)
		}
		all = append(all, ob)
	}
	slices.SortFunc(all, func(a, b Observer) int { return bytes.Compare(a.Member[:], b.Member[:]) })
	return all
}
