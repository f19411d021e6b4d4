package gateway

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"
)

var (
	nodeMAC = [6]byte{2, 0, 0, 0, 0, 1}
	linkOwn = netip.MustParseAddr("fe80::ff:fe00:1")
)

// The sums were added up by another program: the words of both addresses, the
// length 32, the protocol 58 and the message.
func TestNDFrames(t *testing.T) {
	for _, c := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"solicitation", solicitation(nodeMAC, linkOwn, gw6),
			"3333ff0000fe020000000001" + "86dd" + "6000000000203aff" +
				"fe80000000000000000000fffe000001" + "ff0200000000000000000001ff0000fe" +
				"8700" + "4a66" + "00000000" + "20010db80001000000000000000000fe" + "0101020000000001"},
		{"advertisement", advertisement(nodeMAC, linkOwn, gw6),
			"333300000001020000000001" + "86dd" + "6000000000203aff" +
				"fe80000000000000000000fffe000001" + "ff020000000000000000000000000001" +
				"8800" + "a864" + "a0000000" + "20010db80001000000000000000000fe" + "0201020000000001"},
	} {
		if got := hex.EncodeToString(c.frame); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.name, got, c.want)
		}
	}
}

// summed mends the checksum of a frame that was changed.
func summed(frame []byte) []byte {
	m := frame[etherLen+ip6Len:]
	m[2], m[3] = 0, 0
	binary.BigEndian.PutUint16(m[2:], icmp6Sum(frame[etherLen:], m))
	return frame
}

func TestParseAdvertisement(t *testing.T) {
	theirs := [6]byte{2, 0, 0, 0, 0, 2}
	good := func() []byte { return advertisement(theirs, linkOwn, gw6) }
	change := func(at int, v byte) []byte { f := good(); f[at] = v; return summed(f) }
	const ip, message = etherLen, etherLen + ip6Len
	answer := good()
	toUs := linkOwn.As16()
	copy(answer[ip+24:], toUs[:])
	answer[message+4] = ndRouter | ndSolicited | ndOverride
	bare := good()[:message+ndLen] // an answer without the option
	binary.BigEndian.PutUint16(bare[ip+4:], ndLen)
	other := change(message+ndLen, 1) // an option that is none of ours
	mapped := good()
	v4 := netip.MustParseAddr("::ffff:192.0.2.1").As16()
	copy(mapped[message+8:], v4[:])
	for _, c := range []struct {
		name  string
		frame []byte
		ok    bool
	}{
		{"unsolicited", good(), true},
		{"solicited", summed(answer), true},
		{"without option", summed(bare), true},
		{"other option", other, true},
		{"padded", append(good(), make([]byte, 10)...), true},
		{"own", advertisement(nodeMAC, linkOwn, gw6), false},
		{"solicitation", solicitation(theirs, linkOwn, gw6), false},
		{"through a router", change(ip+7, 254), false},
		{"extension header", change(ip+6, 0), false},
		{"code", change(message+1, 1), false},
		{"solicited to everybody", change(message+4, ndSolicited), false},
		{"multicast target", change(message+8, 0xff), false},
		{"IPv4 target", summed(mapped), false},
		{"option of no length", change(message+ndLen+1, 0), false},
		{"option too long", change(message+ndLen+1, 2), false},
		{"payload too long", change(ip+5, 33), false},
		{"payload too short", change(ip+5, 23), false},
		{"no IPv6", change(ip, 0x40), false},
		{"short", good()[:message+ndLen-1], false},
	} {
		got, ok := parseAdvertisement(c.frame, nodeMAC)
		if ok != c.ok || ok && got != (SegmentAnswer{Addr: gw6, MAC: theirs}) {
			t.Errorf("%s: %+v %v", c.name, got, ok)
		}
	}
	for i := range ndLen + ndOptionLen { // each bit of the message counts
		f := good()
		f[message+i] ^= 0x10
		if got, ok := parseAdvertisement(f, nodeMAC); ok {
			t.Errorf("byte %d is wrong: %+v", i, got)
		}
	}
}

func TestGroups(t *testing.T) {
	group := solicitedNode(netip.MustParseAddr("2001:db8::1234:5678"))
	if group != netip.MustParseAddr("ff02::1:ff34:5678") || groupMAC(group) != [6]byte{0x33, 0x33, 0xff, 0x34, 0x56, 0x78} {
		t.Errorf("group %v on %x", group, groupMAC(group))
	}
}

// What is taken for an answer names an address and a MAC that is not ours, and
// nothing that comes from the wire can hurt.
func FuzzAnswers(f *testing.F) {
	theirs := [6]byte{2, 2}
	f.Add(advertisement(theirs, linkOwn, gw6))
	f.Add(append(advertisement(theirs, linkOwn, gw6), make([]byte, 10)...))
	f.Add(solicitation(theirs, linkOwn, gw6))
	f.Add(arpFrame(arpReply, theirs, gw, nodeMAC, gw))
	f.Add(arpFrame(arpRequest, theirs, gw, [6]byte{}, gw))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if a, ok := parseARP(frame, nodeMAC); ok && (!a.Addr.Is4() || a.Addr.IsUnspecified() || a.MAC == nodeMAC) {
			t.Errorf("ARP: %+v", a)
		}
		try := func(frame []byte) {
			if a, ok := parseAdvertisement(frame, nodeMAC); ok && (!a.Addr.Is6() || a.Addr.Is4In6() || a.Addr.IsMulticast() || a.MAC == nodeMAC) {
				t.Errorf("advertisement: %+v", a)
			}
		}
		try(frame)
		// Behind the checksum, too: a random one is never right.
		if len(frame) >= etherLen+ip6Len+ndLen {
			if n := int(binary.BigEndian.Uint16(frame[etherLen+4:])); n >= ndLen && n <= len(frame)-etherLen-ip6Len {
				frame = frame[:etherLen+ip6Len+n]
			}
			try(summed(frame))
		}
	})
}
