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
	soakEvery = 50 * time.Millisecond
	soakTime  = 5 * time.Minute
	// soakGrowth is what may be more after the last minute than after the first: what the
	// garbage collector leaves lying about differs by as much, and so does the number of
	// sessions that wait without a goroutine.
	soakGrowth = 1.10
)

// BenchmarkSoak holds sessions for minutes: `make soak-sstp`. Idle ones answer the echo
// requests that the server sends every minute. A line for each minute; no error, and no
// growth of memory, goroutines or descriptors from the first minute to the last.
func BenchmarkSoak(b *testing.B) {
	raiseFileLimit(b)
	bed := newBed(b)
	vpnlb := bed.startVPNLB(b)
	idle := bed.openThrough(b, vpnlb, 13, soakIdle)
	active := bed.openThrough(b, vpnlb, 12, soakActive)
	bed.load.call(b, "Hold", HoldArgs{ID: idle}, nil)
	bed.load.call(b, "Hold", HoldArgs{ID: active, Every: soakEvery}, nil)
	var all []soakMinute
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for minute := range int(soakTime / time.Minute) {
		<-tick.C
		all = append(all, bed.minute(b, vpnlb))
		now := all[minute]
		b.Logf("minute %d: %.1f MB resident, %d goroutines, %d descriptors, %.1f s CPU; %d packets there and back, %d echo responses",
			minute+1, float64(now.rss)/1e6, now.relay.Goroutines, now.files, now.cpu.Seconds(), now.held.Passed, now.held.Echoed)
		if now.held.Faults != 0 || now.relay.Faults != 0 || now.relay.Connected != soakIdle+soakActive {
			b.Fatalf("%d calls failed at the client, %d at the relay, which has %d calls up", now.held.Faults, now.relay.Faults, now.relay.Connected)
		}
	}
	first, last := all[0], all[len(all)-1]
	want := uint64(soakActive * int(soakTime/soakEvery))
	if last.held.Passed < want*9/10 {
		b.Errorf("%d packets came back in %v, want about %d", last.held.Passed, soakTime, want)
	}
	if least := uint64(soakIdle * (int(soakTime/helloInterval) - 1)); last.held.Echoed < least {
		b.Errorf("%d echo requests were answered, want at least %d", last.held.Echoed, least)
	}
	if last.files != first.files || float64(last.relay.Goroutines) > soakGrowth*float64(first.relay.Goroutines) {
		b.Errorf("goroutines went from %d to %d, descriptors from %d to %d: want no growth",
			first.relay.Goroutines, last.relay.Goroutines, first.files, last.files)
	}
	if float64(last.rss) > soakGrowth*float64(first.rss) {
		b.Errorf("resident memory went from %d to %d bytes", first.rss, last.rss)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(last.rss)/(soakIdle+soakActive)/1024, "KiB/conn")
	b.ReportMetric(float64(last.rss)/float64(first.rss), "x-minute1")
}

// soakMinute is what was seen at the end of a minute.
type soakMinute struct {
	rss   int64
	files int
	cpu   time.Duration
	relay RelayCounts
	held  HeldCounts
}

func (bed *bed) minute(b *testing.B, p *proxy) soakMinute {
	m := soakMinute{rss: p.rss(b), files: p.files(b), cpu: p.cpu(b)}
	p.call(b, "Counts", nil, &m.relay)
	// The minute's echo requests wake the idle: the least of some seconds counts.
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range 5 {
		<-tick.C
		var c RelayCounts
		p.call(b, "Counts", nil, &c)
		m.relay.Goroutines = min(m.relay.Goroutines, c.Goroutines)
	}
	bed.load.call(b, "Held", nil, &m.held)
	return m
}
