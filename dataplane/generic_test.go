package dataplane

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// newHopLane is a lane whose client is behind a router that adds checksums up by
// itself: frames that still have no complete one when they leave the node show what
// the node made of their beginning.
func newHopLane(t testing.TB) *lane {
	plainNode(t)
	hop, l := space(t), &lane{client: space(t), server: space(t)}
	join(t, end{name: "outside", addrs: []string{"198.18.0.1/24"}}, end{hop, "h0", []string{"198.18.0.2/24"}})
	join(t, end{hop, "h1", []string{"203.0.113.1/24"}}, end{l.client, "c0", []string{laneClient + "/24"}})
	join(t, end{name: "inside", addrs: []string{"198.51.100.1/24"}}, end{l.server, "s0", []string{laneServer + "/24"}})
	defaultRoute(t, "outside", "198.18.0.2", 0)
	inside(t, l.client, func() { defaultRoute(t, "c0", "203.0.113.1", 0) })
	inside(t, l.server, func() { defaultRoute(t, "s0", "198.51.100.1", 0) })
	inside(t, hop, func() {
		sysctl(t, "net/ipv4/ip_forward", "1")
		defaultRoute(t, "h0", "198.18.0.1", 0)
	})
	if err := hop.setFeatures("h1", []string{"tx-checksum-ip-generic"}, false); err != nil {
		t.Fatal(err)
	}
	return l
}

// Where a driver has no native XDP the same program forwards, slower. Checksums that a
// server on the same host left for a device stay completable: in generic mode the frame
// keeps the kernel's mark.
func TestGenericModeForwards(t *testing.T) {
	l := newHopLane(t)
	go echo(listen(t, l.server, laneServer+":4500"))
	ping := newPinger(t, l)
	p, err := New(Config{PinDir: newBPFFS(t), Interfaces: []InterfaceConfig{{"outside"}, {"inside"}}, Mode: Generic}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	attachPlane(t, p)
	set := laneSet(100)
	set.VIPs[0].Passthrough = true
	set.Backends[0].Stance[table.TCP-1] = table.Take
	mustResync(t, p, set, nil)
	for n := range uint32(20) {
		ping.send(t, n)
		eventually(t, "answer", func() bool { got, _ := ping.got(); return got == int(n)+1 })
	}
	echoTCP(t, l)
	if s := p.Status().Interfaces[0]; s.Mode != Generic || s.Alarm != "" || !s.Transmit || !s.Partial {
		t.Errorf("interface %+v", s)
	}
	c := allCounts(t, p)
	if c.Reasons[table.ForwardReturn].Packets < 10 || c.Events.PartialRepaired != 0 {
		t.Errorf("counted %+v, %+v", c.Reasons, c.Events)
	}
}

// echoTCP makes a connection to the VIP and gets back what it sends.
func echoTCP(t *testing.T, l *lane) {
	t.Helper()
	var listener net.Listener
	inside(t, l.server, func() {
		var err error
		if listener, err = net.Listen("tcp4", laneServer+":443"); err != nil {
			t.Fatal(err)
		}
	})
	defer listener.Close()
	go func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	}()
	var conn net.Conn
	inside(t, l.client, func() {
		dial := net.Dialer{Timeout: 10 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(laneClient + ":0"))}
		var err error
		if conn, err = dial.DialContext(t.Context(), "tcp4", laneVIP+":443"); err != nil {
			t.Fatal(err)
		}
	})
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	want := "as it went it came back"
	got := make([]byte, len(want))
	if _, err := io.WriteString(conn, want); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v", got, err)
	}
}
