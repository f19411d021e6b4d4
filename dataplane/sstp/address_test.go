package sstp

import (
	"bufio"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// An IPv6 client is known by its prefix.
func TestIPv6(t *testing.T) {
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("no IPv6 here: %v", err)
	}
	ln.Close()
	f := newFarEnd(t, func(f *farEnd) { f.script = rras(anyHash) })
	d := oneTarget(t, f)
	b := newBed(t, d, func(v *Service) { v.Addr, v.ClientBits = netip.IPv6Loopback(), 64 })
	b.at = netip.AddrPortFrom(netip.IPv6Loopback(), b.at.Port())
	c := b.mustDial(nil).open()
	c.send(connectRequest)
	c.want(connectAck)
	if got, want := b.told().Key, (table.Key{Class: table.TCP}); got != want { // ::1 masked to 64 bits
		t.Errorf("key %v, want %v", got, want)
	}
	if got := b.Sessions()[0].Client.Addr(); got != netip.IPv6Loopback() {
		t.Errorf("client %v", got)
	}
}

// A service listens before its address is on the node.
func TestListensOnForeignAddress(t *testing.T) {
	b := newBed(t, oneTarget(t, newFarEnd(t, nil)), nil)
	d := b.desired
	for i, addr := range []string{"192.0.2.10", "2001:db8::10"} {
		d.Services = append(d.Services, Service{VIP: 8 + uint8(i), Name: addr, Addr: netip.MustParseAddr(addr), Mode: Offload, ClientBits: 64})
	}
	if err := b.Apply(d); err != nil {
		t.Fatal(err)
	}
	for _, s := range b.Status().Services {
		if !s.Listening {
			t.Errorf("%s does not listen", s.Addr)
		}
	}
	if err := b.Apply(b.desired); err != nil || len(b.Status().Services) != 1 || len(b.listeners) != 1 {
		t.Errorf("%v, status %+v", err, b.Status().Services)
	}
}

// The server sees the client's own address.
func TestTransparent(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("a foreign source address needs root")
		}
		t.Skip("a foreign source address needs root")
	}
	seen := make(chan net.Addr, 1)
	f := newFarEnd(t, func(f *farEnd) {
		f.script = func(r *bufio.Reader, c far) { seen <- c.RemoteAddr(); r.ReadByte() }
	})
	b := newBed(t, oneTarget(t, f), func(v *Service) { v.Transparent = true })
	b.from = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 77)}
	b.mustDial(nil).open()
	if got := (<-seen).(*net.TCPAddr); !got.IP.Equal(b.from.IP) {
		t.Errorf("the server sees %v", got)
	}
}
