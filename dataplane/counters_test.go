package dataplane

import (
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// What a backend is counted for went to it or came from it, by XDP or by the kernel:
// neither what was dropped nor an ICMP error of our own in its place.
func TestOnlyForwardedPacketsAreCountedByBackend(t *testing.T) {
	p, _ := newSmallPlane(t)
	set := farm(t, 100)
	mustResync(t, p, set, nil)
	leg := p.InterfaceIndex("leg")
	known := bpf.PlaneInterface{Ifindex: leg, Mtu: 1500, Mac: [6]byte{2, 0, 0, 0, 1, 1}, Flags: flagTransmit, Lower: leg, Master: leg}
	if err := p.coll.Maps["interfaces"].Put(leg%interfacePlaces, &known); err != nil {
		t.Fatal(err)
	}
	var places placeBits // all clients share
	if err := p.coll.Maps["routed_places"].Put(uint32(0), &places.PlanePlaces); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		frame   string
		flags   uint8
		mtu     uint16
		reason  table.Reason
		in, out uint64
	}{
		{"eth router > outside | ip client > vip | udp 500 > 500 | ike sa_init", flagTransmit, 1500, table.ForwardMaglev, 1, 0},
		{"eth router > outside | ip client > vip | udp 500 > 500 | ike sa_init", 0, 1500, table.PassCannotTransmit, 1, 0},
		{"eth router > outside | ip client > vip ttl=1 | udp 500 > 500 | ike sa_init", flagTransmit, 1500, table.AnswerExpired, 0, 0},
		{"eth router > outside | ip client > vip df=1 | udp 500 > 500 | ike sa_init | fill 300", flagTransmit, 200, table.AnswerTooBig, 0, 0},
		{"eth s1 > outside | ip s1 > client | udp 4500 > 4500 | esp size=100", flagTransmit, 1500, table.ForwardReturn, 0, 1},
		{"eth s1 > outside | ip s1 > client ttl=1 | udp 4500 > 4500 | esp size=100", flagTransmit, 1500, table.AnswerExpired, 0, 0},
	} {
		hop := bpf.PlaneNextHop{Expires: 1 << 62, Mtu: c.mtu, Ifindex: leg, Serial: p.control.words().NextHopSerial, Flags: c.flags}
		sum := func() (n Counters, in, out uint64) {
			n = allCounts(t, p)
			for slot := range n.In {
				in, out = in+n.In[slot].Packets, out+n.Out[slot].Packets
			}
			return n, in, out
		}
		for _, b := range set.Backends {
			hop.Destination, hop.Vip = destination(b.Addr), b.VIP
			putSlotHop(t, p, uint32(b.Slot), hop) // and with it the counters anew
		}
		for i := range uint32(16) {
			hop.Vip = set.VIPs[0].Index
			putPerCPU(t, p.coll.Maps["next_hop_by_vip"], uint32(set.VIPs[0].Index)*16+i, hop)
		}
		before, in, out := sum()
		run(t, p.coll.Programs["vpnlb"], buildFrame(t, c.frame), leg)
		after, in1, out1 := sum()
		if after.Reasons[c.reason].Packets != before.Reasons[c.reason].Packets+1 || in1-in != c.in || out1-out != c.out {
			t.Errorf("%s: %s counted %d times; in %d, want %d; out %d, want %d", c.frame, c.reason,
				after.Reasons[c.reason].Packets-before.Reasons[c.reason].Packets, in1-in, c.in, out1-out, c.out)
		}
	}
}
