package dataplane

import (
	"fmt"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// BenchmarkXDP measures the program alone: `make bench`, as root. Method:
//
//   - The kernel runs the program over and over on one frame (BPF_PROG_TEST_RUN), on one
//     core. The bench entry (bpf/bench.h) restores what the program changed, picks a
//     client at random and calls the body that ships. Its cost is in all figures but the
//     floor, and is printed as entry.
//   - floor is the loop around a program that returns at once. x-floor is a case's time
//     divided by that of the floor in the same round; what is printed are medians of the
//     rounds. Absolute times drift from machine to machine and from minute to minute, so
//     only ratios are compared. What counts is the thread's own CPU time.
//   - The tables are filled by Resync to what they are meant for (MaxClients = clients),
//     all records confirmed. Rules are full: two VIPs with TCP 443, 16 servers each, a
//     Maglev table of 65537, prefixes that are no clients', UDP checksums. The frame has
//     128 bytes and leaves by XDP_TX. Next hops come from the FIB, by way of the cache.
//   - A case whose packets do not all go the way it is about fails: the program's own
//     counters say so.
//
// hit: a known client; miss: an unknown one; fragment: a later fragment of a known one;
// reverse: a reply, all clients behind one next hop; reverse-by-client: each with a
// place of his own in the cache, and the FIB where that misses (metric fib/op);
// evidence: a reply that proves something new, which must be written to pending.
// B/entry is the kernel's memory for a table, by client that it is meant for.
func BenchmarkXDP(b *testing.B) {
	needRoot(b)
	for _, clients := range []int{1000, 30_000, 100_000, 1_000_000, 4_000_000} {
		bed := newBed(b, clients)
		if clients == 1000 {
			b.Run("floor", func(b *testing.B) { bed.run(b, benchCase{family: 4, mode: modeLoop}) })
			b.Run("entry", func(b *testing.B) { bed.run(b, benchCase{family: 4, mode: modeEntry}) })
		}
		for _, c := range bed.cases() {
			for family := 4; family <= 6; family += 2 {
				c.family = family
				b.Run(fmt.Sprintf("%s/family=%d/clients=%d", c.name, family, clients), func(b *testing.B) { bed.run(b, c) })
			}
		}
		for family := 4; family <= 6; family += 2 {
			b.Run(fmt.Sprintf("memory/family=%d/clients=%d", family, clients), func(b *testing.B) {
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(bed.tableBytes(b, family), "B/entry")
			})
		}
	}
}

// benchCase is one way through the program.
type benchCase struct {
	name     string
	family   int
	mode     uint32
	reason   table.Reason // all its packets are counted under
	fill     string
	reply    bool // from the first server; else from a client to the VIP
	fragment bool
	unknown  bool // clients without a record
	byClient bool // each client has a next hop of his own
	evidence bool // every packet proves something new
}

// evidenceClients are so many that hardly any comes twice in a round.
const evidenceClients = 1 << 26

// cases are in the order that fills the tables twice only.
func (b *bed) cases() []benchCase {
	all := []benchCase{
		{name: "hit", fill: fillSpread, reason: table.ForwardAffinity},
		{name: "miss", fill: fillSpread, reason: table.ForwardMaglev, unknown: true},
		{name: "fragment", fill: fillSpread, reason: table.ForwardAffinity, fragment: true},
		{name: "reverse", fill: fillFirst, reason: table.ForwardReturn, reply: true},
		{name: "reverse-by-client", fill: fillFirst, reason: table.ForwardReturn, reply: true, byClient: true},
	}
	if b.clients == 30_000 {
		all = append(all, benchCase{name: "evidence", fill: fillFirst, reason: table.ForwardReturn, reply: true, unknown: true, evidence: true})
	}
	return all
}

// first is the word of the case's first client.
func (c *benchCase) first() uint32 {
	switch {
	case c.family == 4 && c.unknown:
		return firstUnknown4
	case c.family == 4:
		return firstKnown4
	case c.unknown:
		return firstUnknown6
	}
	return firstKnown6
}

func (c *benchCase) frame(t testing.TB) []byte {
	t.Helper()
	client, vip := clientAddr(c.family, c.first()), vipOf(c.family)
	switch {
	case c.reply:
		return espFrame(t, c.family, bedServer(c.family, 0), client)
	case c.fragment:
		return laterFragment(t, c.family, client, vip)
	}
	return espFrame(t, c.family, client, vip)
}

// plan is what the bench entry is told for one run of the case.
func (c *benchCase) plan(t testing.TB, mode uint32, clients int, seed uint32) bpf.PlaneBenchPlan {
	if c.evidence {
		clients = evidenceClients
	}
	return benchPlan(c.frame(t), mode, clientAt(c.family, c.reply), c.first(), uint32(clients), seed)
}
