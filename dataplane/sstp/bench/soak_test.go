package bench

import (
	"testing"
	"time"
)

// A site's worth of sessions.
const (
	soakIdle   = 5000
	soakActive = 500
	// soakEvery is how often an active session sends a packet, which comes back.
	soakEvery   = 50 * time.Millisecond
	soakMinutes = 5
	// soakWarm comes before: the first echo requests pass in it, and minutes end between
	// the echo requests of most sessions.
	soakWarm = helloInterval * 3 / 2
	// soakGrowth is what may be more in the last minute than in the first. The garbage
	// collector takes what memory it may, and gives it back late.
	soakGrowth = 1.10
)

// BenchmarkSoak holds sessions for minutes: `make soak-sstp`. Idle ones answer the echo
// requests that the server sends every minute. A line for each minute; no error, and no
// growth of memory (the mean of a minute), goroutines or descriptors from the first minute
// to the last.
func BenchmarkSoak(b *testing.B) {
	raiseFileLimit(b)
	bed := newBed(b)
	vpnlb := bed.startVPNLB(b)
	idle := bed.openThrough(b, vpnlb, 13, soakIdle)
	active := bed.openThrough(b, vpnlb, 12, soakActive)
	bed.load.call(b, "Hold", HoldArgs{ID: idle}, nil)
	bed.load.call(b, "Hold", HoldArgs{ID: active, Every: soakEvery}, nil)
	bed.watch(b, vpnlb, soakWarm)
	var all []soakMinute
	for n := range soakMinutes {
		now := bed.watch(b, vpnlb, time.Minute)
		all = append(all, now)
		b.Logf("minute %d: %.1f MB resident (%.1f alive, %.1f stacks, %.1f spare), %d goroutines, %d descriptors, %.1f s CPU; %d packets there and back, %d echo responses",
			n+1, now.rss/1e6, float64(now.relay.Live)/1e6, float64(now.relay.Stacks)/1e6, float64(now.relay.Spare)/1e6,
			now.relay.Goroutines, now.files, now.cpu.Seconds(), now.held.Passed, now.held.Echoed)
		if now.held.Faults != 0 || now.relay.Faults != 0 || now.relay.Connected != soakIdle+soakActive {
			b.Fatalf("%d calls failed at the client, %d at the relay, which has %d calls up", now.held.Faults, now.relay.Faults, now.relay.Connected)
		}
	}
	first, last := all[0], all[len(all)-1]
	took := soakWarm + soakMinutes*time.Minute
	if want := uint64(soakActive * int(took/soakEvery)); last.held.Passed < want*9/10 {
		b.Errorf("%d packets came back in %v, want about %d", last.held.Passed, took, want)
	}
	if least := uint64(soakIdle * (int(took/helloInterval) - 1)); last.held.Echoed < least {
		b.Errorf("%d echo requests were answered, want at least %d", last.held.Echoed, least)
	}
	if last.files != first.files || float64(last.relay.Goroutines) > soakGrowth*float64(first.relay.Goroutines) {
		b.Errorf("goroutines went from %d to %d, descriptors from %d to %d: want no growth",
			first.relay.Goroutines, last.relay.Goroutines, first.files, last.files)
	}
	if last.rss > soakGrowth*first.rss {
		b.Errorf("resident memory went from %.0f to %.0f bytes", first.rss, last.rss)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(last.rss/(soakIdle+soakActive)/1024, "KiB/conn")
	b.ReportMetric(last.rss/first.rss, "x-minute1")
}

// soakMinute is what was seen in a minute; all but the memory, at its end.
type soakMinute struct {
	rss   float64 // mean, in bytes
	files int
	cpu   time.Duration
	relay RelayCounts
	held  HeldCounts
}

func (bed *bed) watch(b *testing.B, p *proxy, over time.Duration) (m soakMinute) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	seconds := int(over / time.Second)
	for range seconds {
		<-tick.C
		m.rss += float64(p.rss(b)) / float64(seconds)
	}
	m.files, m.cpu = p.files(b), p.cpu(b)
	p.call(b, "Counts", nil, &m.relay)
	bed.load.call(b, "Held", nil, &m.held)
	return m
}
