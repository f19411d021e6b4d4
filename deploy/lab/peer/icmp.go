package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Numbers of ICMP (RFC 792) and ICMPv6 (RFC 4443).
const (
	icmpEchoReply       = 0
	icmpUnreachable     = 3
	icmpEcho            = 8
	icmpExceeded        = 11
	icmpParameter       = 12
	codeFragNeeded      = 4
	icmp6TooBig         = 2
	icmp6FirstEcho      = 128
	icmp6Echo           = 128
	icmp6EchoReply      = 129
	icmpHeaderLen       = 8
	ip6HeaderLen        = 40
	ip6FragmentLen      = 8
	nextHeaderICMP6     = 58
	nextHeaderFragment6 = 44
)

// ICMPError is an error message that a host heard, with what it quotes.
type ICMPError struct {
	Client netip.Addr `json:"client"` // Key of the quoted destination; of a client's: the quoted source
	From   netip.Addr `json:"from"`   // who says so
	TooBig bool       `json:"too_big"`
	MTU    uint32     `json:"mtu"`
	Count  int64      `json:"count"`
}

// ErrorStats is what a host heard by ICMP.
type ErrorStats struct {
	Errors  []ICMPError `json:"errors"`  // about packets of its own
	Foreign int64       `json:"foreign"` // about packets that it did not send
	Broken  int64       `json:"broken"`  // with a sum that is wrong, outside or of the quoted IPv4 header
}

const maxErrors = 1 << 12 // distinct ones remembered

// errorLog listens for ICMP errors on a host's addresses.
type errorLog struct {
	addrs []netip.Addr
	mu    sync.Mutex
	st    ErrorStats
	heard chan struct{} // told of each one; capacity 1
}

func newErrorLog(addrs []netip.Addr) *errorLog {
	return &errorLog{addrs: addrs, heard: make(chan struct{}, 1)}
}

// start listens until ctx ends.
func (l *errorLog) start(ctx context.Context, wg *sync.WaitGroup) error {
	for _, a := range l.addrs {
		c, err := listenICMP(a)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { c.Close() })
		wg.Go(func() { l.read(c, a) })
	}
	return nil
}

func listenICMP(a netip.Addr) (net.PacketConn, error) {
	network := "ip4:icmp"
	if a.Is6() {
		network = "ip6:ipv6-icmp"
	}
	c, err := net.ListenPacket(network, a.String())
	if err != nil {
		return nil, fmt.Errorf("listen for ICMP on %s: %w", a, err)
	}
	return c, nil
}

func (l *errorLog) read(c net.PacketConn, own netip.Addr) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		a, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		l.note(buf[:n], a.Unmap(), own)
	}
}

// note judges one ICMP message to own.
func (l *errorLog) note(b []byte, from, own netip.Addr) {
	q, ok := parseError(b, own.Is6())
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case q.broken:
		l.st.Broken++
		return
	case !slices.Contains(l.addrs, q.src):
		l.st.Foreign++
		return
	}
	e := ICMPError{Client: Key(q.dst), From: from, TooBig: q.tooBig, MTU: q.mtu, Count: 1}
	i := slices.IndexFunc(l.st.Errors, func(o ICMPError) bool { o.Count = 1; return o == e })
	switch {
	case i >= 0:
		l.st.Errors[i].Count++
	case len(l.st.Errors) < maxErrors:
		l.st.Errors = append(l.st.Errors, e)
	}
	select {
	case l.heard <- struct{}{}:
	default:
	}
}

func (l *errorLog) stats() ErrorStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.st
	st.Errors = slices.Clone(st.Errors)
	return st
}

// quote is what an ICMP error says.
type quote struct {
	src, dst netip.Addr
	tooBig   bool
	mtu      uint32
	broken   bool
}

// parseError reads an ICMP error; ok is false if it is none. The kernel has
// checked the sum of ICMPv6, a raw socket's ICMP it has not.
func parseError(b []byte, six bool) (q quote, ok bool) {
	if six {
		if len(b) < icmpHeaderLen+ip6HeaderLen || b[0] >= icmp6FirstEcho {
			return q, false
		}
		ip := b[icmpHeaderLen:]
		q.src, q.dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
		if q.tooBig = b[0] == icmp6TooBig; q.tooBig {
			q.mtu = binary.BigEndian.Uint32(b[4:])
		}
		return q, true
	}
	if len(b) < icmpHeaderLen+ipHeaderLen || b[0] != icmpUnreachable && b[0] != icmpExceeded && b[0] != icmpParameter {
		return q, false
	}
	ip := b[icmpHeaderLen:]
	q.src, q.dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	q.broken = fold(onesSum(b, 0)) != 0xffff || ip[0] != 0x45 || fold(onesSum(ip[:ipHeaderLen], 0)) != 0xffff
	if q.tooBig = b[0] == icmpUnreachable && b[1] == codeFragNeeded; q.tooBig {
		q.mtu = uint32(binary.BigEndian.Uint16(b[6:]))
	}
	return q, true
}
