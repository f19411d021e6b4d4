package sysctl

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A further interface in the servers' segment, which no node file names, answers for
// no VIP and no gateway: its answer would take the servers' packets away from the
// interfaces with the program.
func TestThirdInterfaceAnswersForNoOther(t *testing.T) {
	h := newHost(t)
	const vip, gateway, own = "203.0.113.10", "198.51.100.251", "198.51.100.9"
	h.in(h.ns, func() error {
		// A new namespace has what the first one has.
		for _, key := range []string{"arp_ignore", "arp_announce"} {
			if err := os.WriteFile(filepath.Join(procRoot, "net/ipv4/conf/all", key), []byte("0"), 0); err != nil {
				return err
			}
		}
		for name, addr := range map[string]string{"lo": vip + "/32", "eth1": gateway + "/32", "mgmt0": own + "/24"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			a, err := netlink.ParseAddr(addr)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, a); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
		}
		return nil
	})
	// The own address always answers and is asked last: answers do not overtake each other.
	answered := func() map[string]bool { return h.whoHas(vip, gateway, own) }
	if got := answered(); !got[vip] || !got[gateway] {
		t.Errorf("the kernel answers for %v only: the rule can go", got)
	}
	k := New(procRoot, filepath.Join(t.TempDir(), "sysctl.json"), Wanted([]string{"eth0", "eth1"}))
	h.in(h.ns, func() error { _, err := k.Mend(); return err })
	if got := answered(); got[vip] || got[gateway] {
		t.Errorf("a third interface answers for %v", got)
	}
	h.in(h.ns, k.Restore)
	if got := answered(); !got[vip] || !got[gateway] {
		t.Errorf("restored, it answers for %v only", got)
	}
}

// whoHas asks from the router's end of mgmt0 for addresses, the last of which must
// answer, and gives those that did (RFC 826).
func (h *host) whoHas(addrs ...string) map[string]bool {
	h.t.Helper()
	got := make(map[string]bool)
	h.in(h.router, func() error {
		wire, err := net.InterfaceByName("wire0")
		if err != nil {
			return err
		}
		arp := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ARP >> 8, unix.ETH_P_ARP & 0xff})
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(arp))
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: arp, Ifindex: wire.Index}); err != nil {
			return err
		}
		wait := unix.NsecToTimeval(int64(100 * time.Millisecond))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return err
		}
		everybody := &unix.SockaddrLinklayer{Protocol: arp, Ifindex: wire.Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
		for _, addr := range addrs {
			q := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, wire.HardwareAddr...)
			q = append(q, 198, 51, 100, 77)
			q = append(q, make([]byte, 6)...)
			q = append(q, netip.MustParseAddr(addr).AsSlice()...)
			if err := unix.Sendto(fd, q, 0, everybody); err != nil {
				return err
			}
		}
		buf := make([]byte, 128)
		for deadline := time.Now().Add(30 * time.Second); !got[addrs[len(addrs)-1]]; {
			if time.Now().After(deadline) {
				h.t.Fatal("the interface does not answer for its own address")
			}
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err == nil && n >= 28 && buf[7] == 2 {
				got[netip.AddrFrom4([4]byte(buf[14:18])).String()] = true
			}
		}
		return nil
	})
	return got
}
