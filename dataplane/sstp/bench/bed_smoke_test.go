package bench

import (
	"testing"
	"time"
)

// What the benchmarks rely on, in small: every kind of load passes the relay whole, the
// origin sees every call close, and nothing stays behind in the relay.
func TestLoadPassesRelay(t *testing.T) {
	bed := newBed(t)
	vpnlb := bed.startVPNLB(t)
	bed.quiet(t)
	var before, after RelayCounts
	vpnlb.call(t, "Counts", nil, &before)
	for _, key := range keys {
		for _, version := range versions {
			bed.load.call(t, "Handshakes", HandshakeArgs{Proxy: vpnlb.addr[key], TLS: version, Count: 10}, nil)
			var id int
			bed.load.call(t, "Open", OpenArgs{Proxy: vpnlb.addr[key], TLS: version, Calls: 3}, &id)
			vpnlb.call(t, "Counts", nil, &after)
			if after.Connected != 3 {
				t.Errorf("the relay sees %d calls that are up, want 3", after.Connected)
			}
			bed.load.call(t, "Bulk", BulkArgs{ID: id, Packets: 500}, nil)
			bed.load.call(t, "Bulk", BulkArgs{ID: id, Up: true, Packets: 500, PerWrite: batchPackets}, nil)
			bed.load.call(t, "Bulk", BulkArgs{ID: id, Up: true, Packets: 500, PerWrite: 1}, nil)
			var took []time.Duration
			bed.load.call(t, "Echo", EchoArgs{ID: id, Size: packetLen, Count: 20}, &took)
			if len(took) != 3*20 || median(took) <= 0 {
				t.Errorf("%d echoes were timed, the median is %v: want 60", len(took), median(took))
			}
			bed.load.call(t, "Close", id, nil)
			bed.quiet(t)
		}
	}
	if vpnlb.cpu(t) <= 0 || vpnlb.rss(t) <= 0 || vpnlb.files(t) <= 0 {
		t.Error("a process that worked shows no CPU time, memory or descriptors")
	}
	until(t, "the relay ends what it began for the calls", 10*time.Second, func() bool {
		vpnlb.call(t, "Counts", nil, &after)
		return after.Goroutines <= before.Goroutines
	})
	if after.Faults != 0 {
		t.Errorf("the relay counts %d faults", after.Faults)
	}
}
