package dataplane

import (
	"encoding/binary"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// A complete checksum that equals the pseudo-header's sum by chance, one in 65536, is
// mended like any other; one that is really unfinished is not taken for it.
func TestCompleteSumThatLooksPartial(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		set, frame string
		l4, check  int // offsets in the frame, and of the sum in the header
	}{
		{"farm6", "eth router > partial | ip6 client6 > vip6 | udp 50000 > 4500 | esp size=101", 54, 6},
		{"farm6", "eth router > partial | ip6 client6 > vip6 | udp 50000 > 4500 | esp size=1300", 54, 6},
		{"tls", "eth router > partial | ip client > vip | tcp 50000 > 443 | fill 700", 34, 16},
		{"farm", "eth router > partial | ip client > vip | udp 50000 > 4500 | esp size=100", 34, 6},
	} {
		set, err := fixture.Set(c.set)
		if err != nil {
			t.Fatal(err)
		}
		frame := buildFrame(t, c.frame)
		pseudo := pseudoOf(frame, c.l4)
		// The two bytes at the start of the data make up for what the sum must be.
		data := c.l4 + 12
		binary.BigEndian.PutUint16(frame[c.l4+c.check:], pseudo)
		for try := 0; ; try++ {
			binary.BigEndian.PutUint16(frame[data:], 0)
			missing := ^ones(uint64(pseudo) + sumBytes(frame[c.l4:]))
			binary.BigEndian.PutUint16(frame[data:], missing)
			if ones(uint64(pseudo)+sumBytes(frame[c.l4:])) == 0xffff {
				break
			}
			if try > 3 {
				t.Fatal("no such packet")
			}
		}
		for _, right := range []bool{true, false} {
			if !right {
				frame[len(frame)-1] ^= 1 // and so the sum is only the pseudo-header's
			}
			hop := model.Hop{State: model.Resolved, Interface: fixture.Inside, MTU: 1500, MAC: [6]byte{2, 7}, SourceMAC: [6]byte{2, 8}}
			hops := make(map[table.Slot]model.Hop)
			for _, s := range set.Backends {
				hops[s.Slot] = hop
			}
			tables, err := model.FromSet(set, model.Env{Interfaces: fixture.Interfaces(), ToServer: func(s table.Slot) model.Hop { return hops[s] }})
			if err != nil {
				t.Fatal(err)
			}
			want := model.Decide(frame, fixture.Partial, tables)
			if dropped := want.Reason == table.DropPartialSum; dropped == right && c.set != "farm" {
				t.Errorf("%s, right %t: %s", c.frame, right, want.Reason)
			}
			b.resync(t, set, nil)
			b.setHops(t, set, hops)
			if diff := b.compare(t, frame, fixture.Partial, want); diff != "" {
				t.Errorf("%s, right %t: %s", c.frame, right, diff)
			}
		}
	}
}

// pseudoOf is the folded sum of the pseudo-header.
func pseudoOf(frame []byte, l4 int) uint16 {
	protocol, length := uint64(17), uint64(len(frame)-l4)
	if l4 == 34 {
		protocol = uint64(frame[23])
		return ones(sumBytes(frame[26:34]) + protocol + length)
	}
	return ones(sumBytes(frame[22:54]) + protocol + length)
}
