// The shipped binary says so, too.
//
//go:debug multipathtcp=0
package bench

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/metrics"
	"runtime/pprof"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/dataplane/sstp"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Relay is the process that is measured: package sstp with nothing else in it. Its
// methods are called by the benchmark.
type Relay struct {
	server  *sstp.Server
	metrics *prometheus.Registry
	proofs  chan table.Evidence
}

// RelayArgs say what it offers.
type RelayArgs struct {
	Port   uint16
	Origin string
	PEM    map[string]string // file of each service's certificate, by key
}

// Start makes a Server with a service for each key, each with one target: the origin.
func (r *Relay) Start(a RelayArgs, _ *struct{}) error {
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	r.metrics = prometheus.NewRegistry()
	r.proofs = make(chan table.Evidence, 1024)
	go func() {
		for range r.proofs { // the node would propose them
		}
	}()
	var err error
	r.server, err = sstp.New(sstp.Config{Port: a.Port, Self: "bench"}, sstp.Deps{
		Choose: func(vip uint8, _ netip.Addr) (sstp.Route, bool) {
			return sstp.Route{Slot: slotOf(vip), Reason: "the only one"}, true
		},
		Evidence: func(e table.Evidence) {
			select {
			case r.proofs <- e:
			default:
			}
		},
		Metrics: r.metrics,
	})
	if err != nil {
		return err
	}
	desired := sstp.Desired{TicketKeys: make([][32]byte, 2)}
	for i := range desired.TicketKeys {
		rand.Read(desired.TicketKeys[i][:])
	}
	origin, err := netip.ParseAddrPort(a.Origin)
	if err != nil {
		return err
	}
	for vip, key := range keys {
		cert, err := loadCertificate(a.PEM[key])
		if err != nil {
			return err
		}
		desired.Certificates = append(desired.Certificates, sstp.Certificate{Name: key, Hash: sha256.Sum256(cert.Certificate[0]), TLS: &cert})
		desired.Services = append(desired.Services, sstp.Service{VIP: uint8(vip), Name: key, Addr: netip.MustParseAddr(serviceIP[key]),
			Mode: sstp.Offload})
		desired.Targets = append(desired.Targets, sstp.Target{Slot: slotOf(uint8(vip)), VIP: uint8(vip), Name: key, Addr: origin, Certificate: key})
	}
	if err := r.server.Apply(desired); err != nil {
		return err
	}
	go func() {
		if err := r.server.Run(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "run:", err)
			os.Exit(1)
		}
	}()
	return nil
}

func slotOf(vip uint8) table.Slot { return table.Slot(vip) + 1 }

// RelayCounts are the relay's own view of itself.
type RelayCounts struct {
	Goroutines int
	Sessions   int
	Connected  int // sessions whose call is up, as the follower sees it
	Faults     int // refusals, connections that ended as none should here, and alarms
	// Memory as the runtime counts it, in bytes: what the last collection found alive,
	// stacks, and what the heap keeps for use again.
	Live, Stacks, Spare uint64
}

// goodEnds are the only reasons for which a connection should end; handshake: those that
// ask whether the port is open end so.
var goodEnds = map[string]bool{"done": true, "client": true, "handshake": true}

// Counts of all so far.
func (r *Relay) Counts(_ struct{}, c *RelayCounts) error {
	*c = RelayCounts{Goroutines: runtime.NumGoroutine(), Faults: len(r.server.Status().Alarms)}
	for _, s := range r.server.Sessions() {
		c.Sessions++
		if s.State == "connected" {
			c.Connected++
		}
	}
	memory := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(memory)
	c.Live, c.Stacks, c.Spare = memory[0].Value.Uint64(), memory[1].Value.Uint64(), memory[2].Value.Uint64()+memory[3].Value.Uint64()
	families, err := r.metrics.Gather()
	if err != nil {
		return err
	}
	for _, f := range families {
		ended := f.GetName() == "vpnlb_sstp_connections_ended_total"
		if !ended && f.GetName() != "vpnlb_sstp_refused_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if !ended || !goodEnds[m.GetLabel()[0].GetValue()] {
				c.Faults += int(m.GetCounter().GetValue())
			}
		}
	}
	return nil
}

// ProfileCPU writes a profile from now on, until it is called with no name.
func (r *Relay) ProfileCPU(file string, _ *struct{}) error {
	if file == "" {
		pprof.StopCPUProfile()
		return nil
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return pprof.StartCPUProfile(f)
}

// ProfileMemory writes what is held now: objects to FILE.heap, stacks to FILE.stacks, and
// the runtime's own sums to FILE.txt. It does not collect garbage first.
func (r *Relay) ProfileMemory(file string, _ *struct{}) error {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	text := fmt.Sprintf("heap in use %d (objects %d, next collection at %d), idle %d of which returned %d, stacks %d, runtime %d, collections %d\n",
		m.HeapInuse, m.HeapAlloc, m.NextGC, m.HeapIdle, m.HeapReleased, m.StackInuse, m.MSpanInuse+m.MCacheInuse+m.GCSys+m.OtherSys+m.BuckHashSys, m.NumGC)
	err := os.WriteFile(file+".txt", []byte(text), 0o644)
	for name, suffix := range map[string]string{"heap": ".heap", "goroutine": ".stacks"} {
		f, failed := os.Create(file + suffix)
		if failed != nil {
			return errors.Join(err, failed)
		}
		err = errors.Join(err, pprof.Lookup(name).WriteTo(f, 0), f.Close())
	}
	return err
}
