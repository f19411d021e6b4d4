package dataplane

import (
	"fmt"
	"testing"
)

// BenchmarkHop measures the whole hop: `make bench`, as root. Method:
//
//   - A generator makes live frames (BPF_F_TEST_XDP_LIVE_FRAMES) with random clients and
//     complete checksums, and sends them over a veth; what is measured forwards them; a
//     sink drops and counts them (hopbench). All of it runs on one core, mostly in the
//     generator's context. The generator takes the time of its first and its last frame.
//   - floor is the generator with the sink at the other end of its veth. ns/op-net is what
//     a path takes beyond that, both medians of the same, interleaved rounds.
//   - Every frame that was sent must arrive: a loss fails the benchmark.
//
// bounce: a program that swaps MACs, XDP_TX: what of vpnlb-tx is the veth's;
// kernel-forward: the kernel forwards the same frames by route; nft-conntrack: and rewrites
// their destination, with connection tracking; vpnlb-tx: the data plane, out where
// it came in; vpnlb-redirect: out by a second interface. The kernel's veth has an
// XDP program that passes all, which makes it poll as vpnlb's does and costs less than
// GRO. x-kernel and x-conntrack are how many times cheaper, net, vpnlb is.
func BenchmarkHop(b *testing.B) {
	needRoot(b)
	for _, clients := range []int{1000, 100_000} {
		net := make(map[string]float64) // of the paths so far
		for _, path := range hopPaths {
			hop := newHop(b, clients, path)
			b.Run(fmt.Sprintf("%s/clients=%d", path.name, clients), func(b *testing.B) {
				op, net1 := hop.measure(b)
				net[path.name] = net1
				b.ReportMetric(op, "ns/op")
				b.ReportMetric(net1, "ns/op-net")
				if path.plane && net["kernel-forward"] != 0 && net["nft-conntrack"] != 0 {
					b.ReportMetric(net["kernel-forward"]/net1, "x-kernel")
					b.ReportMetric(net["nft-conntrack"]/net1, "x-conntrack")
				}
			})
		}
	}
}

// hopPath is one way from the generator to the sink.
type hopPath struct {
	name      string
	plane     bool // vpnlb forwards
	kernel    bool // the kernel forwards
	conntrack bool // with destination NAT
	back      bool // it leaves where it came in
}

// hopPaths: what others are compared with comes first.
var hopPaths = []hopPath{
	{name: "floor"},
	{name: "bounce", back: true},
	{name: "kernel-forward", kernel: true},
	{name: "nft-conntrack", kernel: true, conntrack: true},
	{name: "vpnlb-tx", plane: true, back: true},
	{name: "vpnlb-redirect", plane: true},
}
