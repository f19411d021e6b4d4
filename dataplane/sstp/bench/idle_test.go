package bench

import (
	"testing"
	"time"
)

// idleTime is how long idle calls are watched: as long as each is silent between two
// echo requests.
const idleTime = helloInterval

// idleCPU is the CPU time of a second that each proxy spends on calls that only answer
// echo requests, in milliseconds. Both are watched at the same time.
func (bed *bed) idleCPU(b *testing.B) results {
	proxies := []*proxy{bed.startHAProxy(b), bed.startVPNLB(b)}
	ids := make(map[string]int)
	for _, p := range proxies {
		ids[p.name] = bed.openThrough(b, p, 13, idleCalls)
		bed.load.call(b, "Hold", HoldArgs{ID: ids[p.name]}, nil)
	}
	settle(b, proxies)
	before := make(map[string]time.Duration)
	for _, p := range proxies {
		before[p.name] = p.cpu(b)
	}
	stop := func() {}
	if *profiles != "" {
		bed.profiled = proxies[1]
		stop = bed.profile(b, "idle-cpu")
	}
	over := time.NewTimer(idleTime)
	defer over.Stop()
	<-over.C
	all := make(results)
	for _, p := range proxies {
		all[p.name] = []float64{float64((p.cpu(b) - before[p.name]).Microseconds()) / 1e3 / idleTime.Seconds()}
	}
	stop()
	bed.close(b, ids)
	for _, p := range proxies {
		p.stop()
	}
	return all
}
