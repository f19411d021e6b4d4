package dataplane

import (
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// A jumbo frame comes in several buffers: its headers are in the first, and its exit
// must be able to send such frames, else the kernel does.
func TestFramesOfSeveralBuffers(t *testing.T) {
	p, _ := newSmallPlane(t)
	set := farm(t, 100)
	mustResync(t, p, set, nil)
	leg := p.InterfaceIndex("leg")
	frame := buildFrame(t, "eth router > outside | ip client > vip len=8000 | udp 50000 > 4500 rest=7908 | esp size=64")
	frame = append(frame, make([]byte, 14+8000-len(frame))...)
	for _, c := range []struct {
		flags  uint8
		action uint32
		reason table.Reason
	}{
		{flagTransmit | flagSeveral, 4, table.ForwardMaglev},
		{flagTransmit, 2, table.PassCannotTransmit},
	} {
		for slot := range uint32(slots) {
			putSlotHop(t, p, slot, bpf.PlaneNextHop{Expires: 1 << 62, Mtu: 9000, Ifindex: 1,
				Serial: p.control.words().NextHopSerial, Flags: c.flags, Destination: bpf.PlaneIn6{Hi: uint64(serverWord(set, slot))}})
		}
		before := allCounts(t, p).Reasons[c.reason]
		action, out := run(t, p.coll.Programs["vpnlb"], frame, leg)
		after := allCounts(t, p).Reasons[c.reason]
		if action != c.action || after.Packets != before.Packets+1 || len(out) != len(frame) {
			t.Errorf("flags %d: action %d, %s counted %d times, %d bytes out of %d", c.flags, action, c.reason, after.Packets-before.Packets, len(out), len(frame))
		}
	}
	// Too long for its frame: malformed, as in one buffer.
	before := allCounts(t, p).Reasons[table.DropMalformed]
	if action, _ := run(t, p.coll.Programs["vpnlb"], frame[:7000], leg); action != 1 || allCounts(t, p).Reasons[table.DropMalformed].Packets != before.Packets+1 {
		t.Errorf("a frame that is too short: action %d", action)
	}
}
