package peer

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAccountCountsEachPacketOnce(t *testing.T) {
	var a account
	start := time.Unix(0, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for i := range 10 {
		if seq := a.send(at(100 * i)); seq != uint64(i) {
			t.Fatalf("packet %d has number %d", i, seq)
		}
	}
	for _, i := range []uint64{0, 1, 2, 5, 6, 7, 8, 9} {
		if fresh, late := a.echo(i); !fresh || late {
			t.Errorf("echo %d: fresh %t late %t", i, fresh, late)
		}
	}
	if fresh, late := a.echo(5); fresh || late {
		t.Error("a second echo counted")
	}
	var lost []time.Time
	note := func(at time.Time) { lost = append(lost, at) }
	a.sweep(at(300), note)
	if !slices.Equal(lost, []time.Time{at(300)}) {
		t.Errorf("lost %v, want the packet of 300 ms alone", lost)
	}
	if _, late := a.echo(3); !late {
		t.Error("an echo after the verdict is not late")
	}
	a.sweep(at(2000), note)
	if !slices.Equal(lost, []time.Time{at(300), at(400)}) || len(a.out) != 0 {
		t.Errorf("lost %v, %d left", lost, len(a.out))
	}
	if seq := a.send(at(3000)); seq != 10 {
		t.Errorf("next number %d, want 10", seq)
	}
}

func TestMessagesReadBack(t *testing.T) {
	init := saInit(7, 0, flagInitiator)
	h, ok := parseHeader(init)
	if !ok || h.spiI != 7 || h.exchange != exchangeSAInit || h.next != payloadSA {
		t.Fatalf("IKE_SA_INIT: %+v %t", h, ok)
	}
	if offered, ke := groups(h.next, init[ikeHeaderLen:]); !slices.Equal(offered, []uint16{groupMODP2048}) || ke != groupMODP2048 {
		t.Errorf("groups %v, KE %d", offered, ke)
	}
	want := secret{round: 2, rounds: 4, spi: 0x1234567, server: 3}
	auth := skMessage(header{spiI: 7, spiR: 9, exchange: exchangeAuth, flags: flagResponse, messageID: 2}, want, authRequestSize)
	h, ok = parseHeader(auth)
	if !ok || h.next != payloadSK || h.messageID != 2 || len(auth) != authRequestSize {
		t.Fatalf("IKE_AUTH: %+v %t, %d bytes", h, ok, len(auth))
	}
	if got, ok := openSK(h, auth); !ok || got != want {
		t.Errorf("secret %+v %t, want %+v", got, ok, want)
	}
	d := data{spi: 0x100, seq: 1 << 40, server: 2}
	if got, ok := parseData(d.encode(0)); !ok || got != d {
		t.Errorf("data %+v %t, want %+v", got, ok, d)
	}
}

func TestResponderRefusesWhatItNeverSaw(t *testing.T) {
	r := newResponder(ResponderConfig{Number: 1})
	natt := &net.UDPConn{} // only its presence counts
	from := netip.MustParseAddrPort("198.18.16.1:40000")
	auth := skMessage(header{spiI: 5, spiR: 6, exchange: exchangeAuth, flags: flagInitiator, messageID: 1}, secret{round: 1, rounds: 1, spi: 999}, 0)
	if m := r.ike(natt, auth, from); m != nil || r.stray[from.Addr()] != 1 {
		t.Errorf("an IKE_AUTH of nobody was answered, or not counted: %v", r.stray)
	}
	probe := saInit(5, 0, flagInitiator)
	sa := int(binary.BigEndian.Uint16(probe[ikeHeaderLen+2:]))
	binary.BigEndian.PutUint16(probe[ikeHeaderLen+sa+4:], 1) // KE for a group that is not offered
	m := r.ike(nil, probe, from)
	h, ok := parseHeader(m)
	if !ok || h.spiR != 0 || h.next != payloadNotify || binary.BigEndian.Uint16(m[ikeHeaderLen+6:]) != notifyInvalidKE || len(r.sas) != 0 {
		t.Errorf("probe: answer %x, %d SAs", m, len(r.sas))
	}
	m = r.ike(nil, saInit(5, 0, flagInitiator), from)
	if h, ok = parseHeader(m); !ok || h.spiR == 0 || r.halfOpen != 1 {
		t.Fatalf("IKE_SA_INIT: %+v, %d half-open", h, r.halfOpen)
	}
	req := skMessage(header{spiI: 5, spiR: h.spiR, exchange: exchangeAuth, flags: flagInitiator, messageID: 1}, secret{round: 1, rounds: 1, spi: 999}, 0)
	first := r.ike(natt, req, from)
	if first == nil || !slices.Equal(first, r.ike(natt, req, from)) || len(r.byClient) != 1 || r.halfOpen != 0 {
		t.Errorf("IKE_AUTH: answer %d bytes, %d clients, %d half-open", len(first), len(r.byClient), r.halfOpen)
	}
}

func TestForgedPacketsHaveRightChecksums(t *testing.T) {
	for _, target := range []Target{
		{netip.MustParseAddr("203.0.113.10"), netip.MustParsePrefix("198.18.128.0/17")},
		{netip.MustParseAddr("2001:db8:0:ff::10"), netip.MustParsePrefix("2001:db8:f::/48")},
	} {
		kinds := map[uint8]int{}
		for n := range 2 * forgedKinds {
			src := randomIn(target.Sources)
			if !target.Sources.Contains(src) {
				t.Fatalf("source %s outside %s", src, target.Sources)
			}
			b := forged(n, src, target.VIP)
			proto, at := b[9], ipHeaderLen
			if src.Is6() {
				proto, at = b[6], ip6HeaderLen
			}
			kinds[proto]++
			if proto != protoTCP && (proto != protoUDP || src.Is4() && b[6]|b[7] != 0) {
				continue // ESP, or a fragment
			}
			if sum := transportSum(src, target.VIP, proto, b[at:]); sum != 0 {
				t.Errorf("packet %d: sum %#x", n, sum)
			}
		}
		if kinds[protoTCP] != 2 || kinds[protoESP] != 2 {
			t.Errorf("protocols %v", kinds)
		}
	}
}

// TestICMPErrorsAreReadBack makes the errors that probes forge and reads them as
// servers do.
func TestICMPErrorsAreReadBack(t *testing.T) {
	for _, c := range []struct{ router, server, client string }{
		{"198.18.200.1", "203.0.113.10", "198.18.16.1"},
		{"2001:db8:f::1", "2001:db8:0:ff::10", "2001:db8:c:7::99"},
	} {
		router, server, client := netip.MustParseAddr(c.router), netip.MustParseAddr(c.server), netip.MustParseAddr(c.client)
		reply := ipPacket(server, client, protoUDP, piece{}, datagram(netip.AddrPortFrom(server, 4500), netip.AddrPortFrom(client, 9), random(600)))
		_, b := tooBig(router, server, 1280, headerSum(reply)[:ip6HeaderLen+udpHeaderLen])
		log := newErrorLog([]netip.Addr{server})
		log.note(b, router, server)
		log.note(b, router, server)
		want := ICMPError{Client: Key(client), From: router, TooBig: true, MTU: 1280, Count: 2}
		if st := log.stats(); len(st.Errors) != 1 || st.Errors[0] != want || st.Foreign != 0 || st.Broken != 0 {
			t.Errorf("%+v, want %+v", st, want)
		}
		log = newErrorLog([]netip.Addr{router})
		log.note(b, router, server)
		if st := log.stats(); st.Foreign != 1 || len(st.Errors) != 0 {
			t.Errorf("about somebody else's packet: %+v", st)
		}
		if server.Is4() {
			b[20] ^= 1
			log.note(b, router, server)
			if log.stats().Broken != 1 {
				t.Error("a broken sum was not seen")
			}
		}
	}
}

func TestKeyNamesTheSlash64(t *testing.T) {
	a := netip.MustParseAddr("2001:db8:c:5::1")
	for range 100 {
		b := anotherOf(a)
		if b == a || Key(b) != a {
			t.Fatalf("%s has the key %s, want %s", b, Key(b), a)
		}
	}
}

func TestPiecesCoverTheDatagram(t *testing.T) {
	const size = 2044
	for _, c := range pieceCases {
		seen := make([]int, size)
		for _, x := range c.cuts(size) {
			if c.malformed == 0 && (x.more && (x.to-x.from)%8 != 0 || x.offset%8 != 0) {
				t.Errorf("%s: %+v is malformed", c.name, x)
			}
			for i := x.from; i < x.to; i++ {
				seen[i]++
			}
		}
		if c.answered && slices.ContainsFunc(seen, func(n int) bool { return n != 1 }) {
			t.Errorf("%s does not cover the datagram once", c.name)
		}
	}
}

func TestTCPAnswers(t *testing.T) {
	for line, want := range map[string]string{
		"HEAD " + sstpPath + " HTTP/1.1":             "HTTP/1.1 401 ",
		"SSTP_DUPLEX_POST " + sstpPath + " HTTP/1.1": "HTTP/1.1 200\r\n",
		"GET / HTTP/1.1":                             "HTTP/1.1 404 ",
		"nonsense":                                   "HTTP/1.1 404 ",
	} {
		if got, stream := answer(line); !strings.HasPrefix(got, want) || stream != (want == "HTTP/1.1 200\r\n") {
			t.Errorf("%s: %q %t", line, got, stream)
		}
	}
	want := record{seq: 1 << 40, server: 3}
	if got, err := readRecord(bytes.NewReader(want.encode())); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestDataNeverLooksUnfinished(t *testing.T) {
	from, to := netip.MustParseAddrPort("[2001:db8:c:7::1]:40000"), netip.MustParseAddrPort("[2001:db8:0:ff::10]:4500")
	met := 0
	for seq := range uint64(1 << 18) {
		d := data{spi: 0x100, seq: seq}
		if !looksUnfinished(from, to, d.encode(0)) {
			continue
		}
		met++
		b := d.encodeFor(from, to, 0)
		if got, ok := parseData(b); !ok || got != d || looksUnfinished(from, to, b) {
			t.Errorf("packet %d: %+v", seq, got)
		}
	}
	if met == 0 {
		t.Error("no packet of so many met the case")
	}
}

// A client that stood still counts nothing as lost for that, and what is really
// lost all the same.
func TestClientThatStoodStill(t *testing.T) {
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	lost := 0
	count := func(time.Time) { lost++ }
	c := client{cfg: ClientsConfig{Rate: 10}, judged: at(0)}
	c.acc.send(at(0))
	c.acc.send(at(0))
	if gap := c.stood(at(100)); gap != 0 {
		t.Errorf("an ordinary tick counts as a gap of %s", gap)
	}
	if gap := c.stood(at(2100)); gap != 2*time.Second {
		t.Errorf("a gap of 2 s counts as %s", gap)
	}
	c.acc.sweep(at(2100).Add(-lostAfter), count)
	if lost != 0 {
		t.Error("lost while nobody listened")
	}
	c.acc.echo(0)
	c.stood(at(2200))
	c.acc.sweep(at(3200).Add(-lostAfter), count)
	if lost != 1 {
		t.Errorf("%d lost of two, one of which came", lost)
	}
}

// Answers come from the address that was written to: a client takes nothing else
// for one, and says how often it happened.
func TestAnswersComeFromWhereTheyWereAskedFor(t *testing.T) {
	local := netip.MustParseAddr("127.0.0.1")
	open := func() *net.UDPConn {
		c, err := listenUDP(t.Context(), netip.AddrPortFrom(local, 0), 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	conn, vip, other := open(), open(), open()
	var f foreign
	tun := &tunnel{conn: conn, foreign: &f}
	for _, from := range []*net.UDPConn{other, vip} {
		if _, err := from.WriteToUDPAddrPort([]byte("answer"), localOf(conn)); err != nil {
			t.Fatal(err)
		}
	}
	taken := 0
	ok, err := tun.await(conn, localOf(vip), 5*time.Second, func([]byte) bool { taken++; return true })
	if !ok || err != nil || taken != 1 || f.n.Load() != 1 || f.err() == nil {
		t.Errorf("ok %t, %v: %d taken, %d from elsewhere, which is %v", ok, err, taken, f.n.Load(), f.err())
	}
}
