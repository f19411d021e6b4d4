package bench

import (
	"crypto/tls"
	"flag"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	rounds     = 11
	idleRounds = 3

	bulkCalls   = 8
	bulkPackets = 15_000 // of each call and round: 23 MB
	loneCalls   = 64
	loneCount   = 100 // packets of each call and round
	upPackets   = 6_000
	handshakes  = 400 // of a round
	warmCalls   = 50
	idleCalls   = 2000
	pings       = 500 // of a round
	pingSize    = 100 // bytes of a packet
)

var versions = map[int]uint16{12: tls.VersionTLS12, 13: tls.VersionTLS13}

// With -profiles, `go tool pprof FILE` shows where vpnlb's time of one case goes, and who
// holds memory in the midst of the idle case.
var profiles = flag.String("profiles", "", "write profiles of the vpnlb process, one for each case, into this folder")

// BenchmarkSSTP compares package sstp with HAProxy: `BENCH=sstp make bench`. Method:
//
//   - Four kinds of processes on loopback: the clients, a proxy, an origin that answers as
//     RRAS does with "Use HTTP". Proxies are Debian's HAProxy with testdata/haproxy.cfg,
//     and the Server of package sstp alone in a process, in the mode offload, with the
//     runtime settings of the shipped binary. Both serve at the same time.
//   - A figure counts the CPU time of the proxy's process alone, all threads, user and
//     kernel. Proxies take turns round by round; what is printed are medians of the
//     rounds. x-haproxy is vpnlb's figure divided by HAProxy's in the same round. Absolute
//     figures drift from machine to machine and from minute to minute: compare ratios only.
//   - Clients speak SSTP: the request head, a call up to Call Connected, then packets. Each
//     has an address of its own. They offer X25519, P-256, P-384 and take session tickets.
//     Suites are each proxy's choice. Whatever a client misses or finds wrong fails the
//     benchmark.
//
// bulk: so many calls at once send packets of 1504 bytes (PPP frames of 1500), written
// 43 at a time, so that TLS records are full. up-packets: from the client in a TLS
// record each. packets: calls with a single packet of 1504 bytes under way, there and
// back, each direction counted: what a relay costs when it cannot take several at once.
// handshake: full handshakes, then head, connection to the origin, its response, close.
// idle: resident memory for each connected call that is silent, a fresh process each
// round; the kernel's memory is not in it. idle-cpu: CPU time of each second for those calls,
// which answer an echo request a minute. ping: one call, one packet of 100 bytes at a
// time; x-haproxy is that of the medians.
func BenchmarkSSTP(b *testing.B) {
	printVersion(b)
	raiseFileLimit(b)
	bed := newBed(b)
	proxies := []*proxy{bed.startHAProxy(b), bed.startVPNLB(b)}
	bed.profiled = proxies[1]
	for _, version := range []int{12, 13} {
		for _, c := range []struct {
			name string
			bulk BulkArgs
		}{
			{"bulk-down", BulkArgs{Packets: bulkPackets, PerWrite: batchPackets}},
			{"bulk-up", BulkArgs{Up: true, Packets: bulkPackets, PerWrite: batchPackets}},
			{"up-packets", BulkArgs{Up: true, Packets: upPackets, PerWrite: 1}},
		} {
			bed.compare(b, fmt.Sprintf("%s/tls=%d", c.name, version), "MB/cpu-s", func(b *testing.B) results {
				calls := bed.open(b, proxies, version, bulkCalls)
				return bed.takeTurns(b, proxies, func(p *proxy) float64 {
					bulk := c.bulk
					bulk.ID = calls[p.name]
					return bulkCalls * float64(bulk.Packets) * packetLen / 1e6 / p.spent(b, func() {
						bed.load.call(b, "Bulk", bulk, nil)
					})
				})
			})
		}
		bed.compare(b, fmt.Sprintf("packets/tls=%d", version), "packets/cpu-s", func(b *testing.B) results {
			calls := bed.open(b, proxies, version, loneCalls)
			return bed.takeTurns(b, proxies, func(p *proxy) float64 {
				return 2 * loneCalls * loneCount / p.spent(b, func() {
					bed.load.call(b, "Echo", EchoArgs{ID: calls[p.name], Size: packetLen, Count: loneCount}, new([]time.Duration))
				})
			})
		})
		for _, key := range keys {
			bed.compare(b, fmt.Sprintf("handshake/tls=%d/key=%s", version, key), "hs/cpu-s", func(b *testing.B) results {
				return bed.takeTurns(b, proxies, func(p *proxy) float64 {
					return handshakes / p.spent(b, func() {
						bed.load.call(b, "Handshakes", HandshakeArgs{Proxy: p.addr[key], TLS: versions[version], Count: handshakes}, nil)
						bed.quiet(b)
					})
				})
			})
		}
	}
	bed.compare(b, "idle", "KiB/conn", bed.idle)
	bed.compare(b, "idle-cpu", "ms/s", bed.idleCPU)
	bed.ping(b, proxies)
}

// printVersion prints a line of configuration in the format of Go's benchmarks.
func printVersion(b *testing.B) {
	out, err := exec.Command(findHAProxy(b), "-v").Output()
	if err != nil {
		b.Fatal(err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	fmt.Println("haproxy:", strings.TrimPrefix(first, "HAProxy version "))
}

// profile starts a profile of vpnlb's CPU time, where one is wanted.
func (bed *bed) profile(b *testing.B, name string) (stop func()) {
	if *profiles == "" {
		return func() {}
	}
	file, err := filepath.Abs(filepath.Join(*profiles, strings.NewReplacer("/", "-", "=", "").Replace(name)+".cpu"))
	if err != nil {
		b.Fatal(err)
	}
	bed.profiled.call(b, "ProfileCPU", file, nil)
	return func() { bed.profiled.call(b, "ProfileCPU", "", nil) }
}

// results are a figure for each round, by proxy.
type results map[string][]float64

// ratio is the median of what vpnlb's rounds are to HAProxy's.
func (r results) ratio() float64 {
	ratios := make([]float64, len(r["vpnlb"]))
	for i, v := range r["vpnlb"] {
		ratios[i] = v / r["haproxy"][i]
	}
	return median(ratios)
}

// compare measures a case when its first line is wanted, and gives each proxy a line.
func (bed *bed) compare(b *testing.B, name, unit string, measure func(b *testing.B) results) {
	bed.compareWith(b, name, unit, measure, nil)
}

// compareWith is compare with a second figure, the hellos of strangers, which measure
// fills in.
func (bed *bed) compareWith(b *testing.B, name, unit string, measure func(b *testing.B) results, hellos results) {
	var all results
	for _, proxy := range []string{"haproxy", "vpnlb"} {
		b.Run(name+"/proxy="+proxy, func(b *testing.B) {
			if all == nil {
				stop := bed.profile(b, name)
				all = measure(b)
				stop()
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(all[proxy]), unit)
			if hellos != nil {
				b.ReportMetric(median(hellos[proxy]), "hellos/s")
			}
			if proxy == "vpnlb" {
				b.ReportMetric(all.ratio(), "x-haproxy")
			}
		})
	}
}

// takeTurns gives every proxy a round that does not count, and then the rounds.
func (bed *bed) takeTurns(b *testing.B, proxies []*proxy, round func(p *proxy) float64) results {
	return bed.takeSomeTurns(b, rounds, proxies, round)
}

func (bed *bed) takeSomeTurns(b *testing.B, rounds int, proxies []*proxy, round func(p *proxy) float64) results {
	all := make(results)
	for n := range rounds + 1 {
		if n%2 == 1 {
			proxies = slices.Clone(proxies)
			slices.Reverse(proxies)
		}
		for _, p := range proxies {
			if figure := round(p); n != 0 {
				all[p.name] = append(all[p.name], figure)
			}
		}
	}
	return all
}

// open opens calls through each proxy, until the case is over.
func (bed *bed) open(b *testing.B, proxies []*proxy, version, calls int) map[string]int {
	ids := make(map[string]int)
	for _, p := range proxies {
		ids[p.name] = bed.openThrough(b, p, version, calls)
	}
	b.Cleanup(func() { bed.close(b, ids) })
	return ids
}

func (bed *bed) openThrough(b *testing.B, p *proxy, version, calls int) (id int) {
	bed.load.call(b, "Open", OpenArgs{Proxy: p.addr["ecdsa"], TLS: versions[version], Calls: calls}, &id)
	return id
}

// close returns when the proxies have closed, too.
func (bed *bed) close(b *testing.B, ids map[string]int) {
	for _, id := range ids {
		bed.load.call(b, "Close", id, nil)
	}
	bed.quiet(b)
}

// spent is the CPU time that the proxy uses for something, in seconds.
func (p *proxy) spent(b *testing.B, do func()) float64 {
	start := p.cpu(b)
	do()
	return (p.cpu(b) - start).Seconds()
}

// idle compares fresh processes: what earlier cases freed is not there to be used again.
func (bed *bed) idle(b *testing.B) results {
	all := make(results)
	for range idleRounds {
		proxies := []*proxy{bed.startHAProxy(b), bed.startVPNLB(b)}
		before, ids := make(map[string]int64), make(map[string]int)
		for _, p := range proxies {
			ids[p.name] = bed.openThrough(b, p, 13, warmCalls)
		}
		bed.close(b, ids)
		settle(b, proxies)
		for _, p := range proxies {
			before[p.name] = p.rss(b)
			ids[p.name] = bed.openThrough(b, p, 13, idleCalls)
		}
		settle(b, proxies)
		if *profiles != "" {
			file, err := filepath.Abs(filepath.Join(*profiles, "idle"))
			if err != nil {
				b.Fatal(err)
			}
			proxies[1].call(b, "ProfileMemory", file, nil)
		}
		for _, p := range proxies {
			all[p.name] = append(all[p.name], float64(p.rss(b)-before[p.name])/1024/idleCalls)
		}
		bed.close(b, ids)
		for _, p := range proxies {
			p.stop()
		}
	}
	return all
}

// ping takes turns as all do, and prints two figures for each proxy.
func (bed *bed) ping(b *testing.B, proxies []*proxy) {
	took := make(map[string][]time.Duration)
	var medians results
	for _, who := range []string{"haproxy", "vpnlb"} {
		b.Run("ping/proxy="+who, func(b *testing.B) {
			if medians == nil {
				stop := bed.profile(b, "ping")
				defer stop()
				calls := bed.open(b, proxies, 13, 1)
				medians = bed.takeTurns(b, proxies, func(p *proxy) float64 {
					var round []time.Duration
					bed.load.call(b, "Echo", EchoArgs{ID: calls[p.name], Size: pingSize, Count: pings}, &round)
					took[p.name] = append(took[p.name], round...)
					return median(round).Seconds()
				})
			}
			all := slices.Sorted(slices.Values(took[who]))
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(all[len(all)/2])/1e3, "us-p50")
			b.ReportMetric(float64(all[len(all)*99/100])/1e3, "us-p99")
			if who == "vpnlb" {
				b.ReportMetric(medians.ratio(), "x-haproxy")
			}
		})
	}
}
