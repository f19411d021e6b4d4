package dataplane

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// TestBenchEntryRestores: after the program, the bench entry makes the frame again to
// the byte what it was before, or the benchmark would measure some other packet.
func TestBenchEntryRestores(t *testing.T) {
	bed := newBed(t, 1000)
	bed.use(t, fillSpread)
	bed.share(t, true)
	type frame struct {
		name  string
		bytes []byte
		at    int
		first uint32
		want  table.Reason
	}
	var frames []frame
	for family := 4; family <= 6; family += 2 {
		for _, c := range bed.cases() {
			c.family = family
			frames = append(frames, frame{c.name, c.frame(t), clientAt(family, c.reply), c.first(), c.reason})
		}
		known, unknown := benchCase{family: family}, benchCase{family: family, unknown: true}
		client, stranger := clientAddr(family, known.first()), clientAddr(family, unknown.first())
		vip, server, ip := vipOf(family), bedServer(family, 0), benchLayer(family)
		notice, rest := "icmp 3 4", 20
		if family == 6 {
			notice, rest = "icmp6 2 0", 0
		}
		frames = append(frames,
			frame{"tcp", benchFrame(t, "%s %s > %s | tcp 50000 > 443 | fill 60", ip, stranger, vip), clientAt(family, false), unknown.first(), table.ForwardMaglev},
			frame{"tcp reply", benchFrame(t, "%s %s > %s | tcp 443 > 50000 | fill 60", ip, server, client), clientAt(family, true), known.first(), table.ForwardReturn},
			frame{"error", benchFrame(t, "%s %s > %s | %s | %s %s > %s | udp 4500 > 4500 | fill %d", ip, stranger, vip, notice, ip, vip, client, 30+rest), 0, 0, table.ForwardICMPError},
			frame{"error of a server", benchFrame(t, "%s %s > %s | %s | %s %s > %s | udp 4500 > 4500 | fill %d", ip, server, client, notice, ip, client, server, 30+rest), 0, 0, table.ForwardReturnICMPError},
		)
	}
	err := bed.ns.do(func() error {
		for i, f := range frames {
			name := fmt.Sprintf("%s, family %d", f.name, 4+i/(len(frames)/2)*2)
			before := allCounts(t, bed.Plane).Reasons[f.want].Packets
			restored := bed.enter(t, f.bytes, f.bytes, modeEntry, f.at, f.first)
			changed := bed.enter(t, f.bytes, f.bytes, modeProgram, f.at, f.first)
			if bytes.Equal(changed, restored) {
				t.Errorf("%s: the program changed nothing", name)
			}
			if again := bed.enter(t, f.bytes, changed, modeEntry, f.at, f.first); !bytes.Equal(again, restored) {
				t.Errorf("%s: was\n%x\nrestored as\n%x", name, restored, again)
			}
			if n := allCounts(t, bed.Plane).Reasons[f.want].Packets - before; n != 1 {
				t.Errorf("%s: %d packets were counted as %s, want 1", name, n, f.want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// enter runs one packet through the bench entry, which knows the frame as original,
// with the same client every time.
func (b *bed) enter(t *testing.T, original, frame []byte, mode uint32, at int, first uint32) []byte {
	t.Helper()
	plan := benchPlan(original, mode, at, first, uint32(b.clients), 77)
	if err := b.coll.Maps["bench_plans"].Put(uint32(0), &plan); err != nil {
		t.Fatal(err)
	}
	o := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64), Context: xdpMD{DataEnd: uint32(len(frame)), Ifindex: b.leg}}
	action, err := b.coll.Programs["vpnlb_bench"].Run(o)
	if err != nil {
		t.Fatal(err)
	}
	if action != actionTX {
		t.Fatalf("action %d, want XDP_TX", action)
	}
	return o.DataOut
}
