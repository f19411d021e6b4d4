package dataplane

import (
	"time"

	"github.com/vpnlb/vpnlb/dataplane/bucket"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// LastPackets gives a function that tells how long ago the last packet of a
// record crossed this node, either way, as of now; false: none is remembered. It
// is exact to a tick of one to two seconds. Nil while nothing is attached.
func (p *Plane) LastPackets() func(table.Key) (time.Duration, bool) {
	p.reading.RLock()
	defer p.reading.RUnlock()
	if !p.attached.Load() {
		return nil
	}
	now, err := p.clock.tick()
	if err != nil {
		return nil
	}
	return func(k table.Key) (time.Duration, bool) {
		p.reading.RLock()
		defer p.reading.RUnlock()
		if !p.attached.Load() {
			return 0, false
		}
		r, found, err := p.affinities.lookup(k)
		if err != nil || !found {
			return 0, false
		}
		age, ok := bucket.Age(now, r.Tick)
		if !ok || age > bucket.StaleTicks {
			return 0, false
		}
		return p.clock.ticks(age), true
	}
}
