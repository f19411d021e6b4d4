package forward

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// marks number the packets of this process, so that each is known again.
var marks uint64

// packet is an IP packet with its mark at the end.
type packet struct {
	bytes []byte
	mark  []byte
	dst   netip.Addr
}

// datagram is head, a transport header or its beginning, and a mark, from source
// to destination. later: as a fragment that is not the first.
func datagram(f family, source, destination string, proto byte, head []byte, later bool) packet {
	marks++
	mark := binary.BigEndian.AppendUint64([]byte("vpnlb:"), marks)
	payload := append(bytes.Clone(head), mark...)
	src, dst := netip.MustParseAddr(source), netip.MustParseAddr(destination)
	var b []byte
	if f.number == unix.NFPROTO_IPV4 {
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(20+len(payload)))
		b = append(b, 0, byte(marks))
		b = binary.BigEndian.AppendUint16(b, offset(later, 185)) // in units of 8 bytes
		b = append(b, 64, proto, 0, 0)                           // the kernel adds the sum up
	} else {
		b = append(b, 0x60, 0, 0, 0)
		if later {
			payload = append([]byte{proto, 0, byte(offset(true, 185) >> 5), byte(offset(true, 185) << 3), 0, 0, 0, byte(marks)}, payload...)
			proto = unix.IPPROTO_FRAGMENT
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
		b = append(b, proto, 64)
	}
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	return packet{bytes: append(b, payload...), mark: mark, dst: dst}
}

func offset(later bool, n uint16) uint16 {
	if later {
		return n
	}
	return 0
}

func udp(port uint16) []byte { return []byte{0x30, 0x39, byte(port >> 8), byte(port), 0, 22, 0, 0} }

// fromPort and tcpFrom are what a server sends.
func fromPort(port uint16) []byte {
	return []byte{byte(port >> 8), byte(port), 0x30, 0x39, 0, 22, 0, 0}
}

func tcpFrom(port uint16) []byte {
	return append([]byte{byte(port >> 8), byte(port)}, tcp(12345)[2:]...)
}

// tcp is an opening one.
func tcp(port uint16) []byte {
	return []byte{0x30, 0x39, byte(port >> 8), byte(port), 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0}
}

func icmp(kind, code byte) []byte { return []byte{kind, code, 0, 0, 0, 0, 0, 0} }

func (l *lane) send(ns netns.NsHandle, p packet) {
	l.t.Helper()
	l.in(ns, func() error {
		domain := unix.AF_INET
		var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(p.dst.AsSlice())}
		if p.dst.Is6() {
			domain, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: p.dst.As16()}
		}
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // with its own IP header
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, p.bytes, 0, to)
	})
}

// ear hears all packets that an interface takes in.
type ear struct {
	t  *testing.T
	fd int
}

func (l *lane) ear(ns netns.NsHandle, name string) *ear {
	l.t.Helper()
	e := &ear{t: l.t}
	l.in(ns, func() (err error) {
		link, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
		if e.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		wait := unix.NsecToTimeval(int64(100 * time.Millisecond))
		if err := unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return err
		}
		return unix.Bind(e.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	})
	l.t.Cleanup(func() { unix.Close(e.fd) })
	return e
}

// until gives every packet up to the one with the mark. That one must come.
func (e *ear) until(mark []byte) (heard [][]byte) {
	e.t.Helper()
	buf := make([]byte, 2048)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		n, from, err := unix.Recvfrom(e.fd, buf, 0)
		if err != nil {
			continue // nothing for now
		}
		if at, ok := from.(*unix.SockaddrLinklayer); !ok || at.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		heard = append(heard, bytes.Clone(buf[:n]))
		if bytes.Contains(buf[:n], mark) {
			return heard
		}
	}
	e.t.Fatal("a packet that must pass does not arrive")
	return nil
}

// probe is one packet of a test.
type probe struct {
	name string
	packet
	want bool
}

// expect sends all probes and then one that passes under every policy: when that
// has arrived, what did not arrive before it was dropped.
func (l *lane) expect(when string, from netns.NsHandle, at *ear, last packet, probes []probe) {
	l.t.Helper()
	for _, p := range probes {
		l.send(from, p.packet)
	}
	l.send(from, last)
	l.judge(when, at.until(last.mark), probes)
}

// judge compares what was heard with what the probes want.
func (l *lane) judge(when string, heard [][]byte, probes []probe) {
	l.t.Helper()
	for _, p := range probes {
		got := false
		for _, h := range heard {
			got = got || bytes.Contains(h, p.mark)
		}
		if got != p.want {
			l.t.Errorf("%s: %s passes: %v, want %v", when, p.name, got, p.want)
		}
	}
}
