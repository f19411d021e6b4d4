package bench

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/sstp/storm"
)

// A storm, and the honest clients beside it.
const (
	stormRounds   = 5
	stormTime     = 4 * time.Second // of a round
	stormParallel = 600
	stormSources  = 200
	stormLogins   = 16 // at one time
)

// BenchmarkStorm compares how many clients log in beside a storm of hellos that never
// do: `BENCH=storm make bench`. The logins are to the service with the ECDSA key, the
// storm is against the one with the named key. x-haproxy is as in BenchmarkSSTP.
func BenchmarkStorm(b *testing.B) {
	printVersion(b)
	raiseFileLimit(b)
	bed := newBed(b)
	proxies := []*proxy{bed.startHAProxy(b), bed.startVPNLB(b)}
	strangers := startRole(b, "Load")
	for _, key := range keys {
		hellos := make(results)
		bed.compareWith(b, fmt.Sprintf("logins/storm=%s", key), "logins/s", func(b *testing.B) results {
			return bed.takeSomeTurns(b, stormRounds, proxies, func(p *proxy) float64 {
				var r storm.Result
				storming := strangers.client.Go("Load.Storm", StormArgs{Proxy: p.addr[key]}, &r, nil)
				var logins int64
				bed.load.call(b, "Logins", LoginArgs{Proxy: p.addr["ecdsa"], TLS: versions[13], For: stormTime}, &logins)
				if <-storming.Done; storming.Error != nil {
					b.Fatal(storming.Error)
				}
				hellos[p.name] = append(hellos[p.name], float64(r.Answered)/stormTime.Seconds())
				return float64(logins) / stormTime.Seconds()
			})
		}, hellos)
	}
}

// StormArgs say where to.
type StormArgs struct{ Proxy string }

// Storm runs for stormTime.
func (l *Load) Storm(a StormArgs, r *storm.Result) error {
	to, err := netip.ParseAddrPort(a.Proxy)
	if err != nil {
		return err
	}
	cfg := storm.Config{To: to, Parallel: stormParallel, For: stormTime}
	for i := range stormSources {
		cfg.Sources = append(cfg.Sources, netip.AddrFrom4([4]byte{127, 200, 0, byte(1 + i)}))
	}
	*r, err = storm.Run(context.Background(), cfg)
	return err
}

// LoginArgs of calls that end with the server's response head.
type LoginArgs struct {
	Proxy string
	TLS   uint16
	For   time.Duration
}

// Logins counts the connections that came as far within a time; a client that fails
// tries again, as real ones do.
func (l *Load) Logins(a LoginArgs, n *int64) error {
	config := clientConfig(a.TLS)
	end := time.Now().Add(a.For)
	var good atomic.Int64
	var wg sync.WaitGroup
	for range stormLogins {
		wg.Go(func() {
			for time.Now().Before(end) {
				if c, err := l.connect(a.Proxy, config); err == nil {
					c.conn.Close()
					if time.Now().Before(end) {
						good.Add(1)
					}
				}
			}
		})
	}
	wg.Wait()
	*n = good.Load()
	return nil
}
