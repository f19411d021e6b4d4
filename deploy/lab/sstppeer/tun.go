package sstppeer

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tunPattern lets the kernel number the devices of a namespace.
const tunPattern = "sstp%d"

// openTUN makes a TUN device in the process' namespace with the address local
// and a route to what is behind it. It is gone when the file is closed.
func openTUN(local netip.Addr, behind netip.Prefix) (f *os.File, name string, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", fmt.Errorf("open tun: %w", err)
	}
	ifr, err := unix.NewIfreq(tunPattern)
	if err != nil {
		unix.Close(fd)
		return nil, "", fmt.Errorf("name tun: %w", err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return nil, "", fmt.Errorf("make tun: %w", err)
	}
	f = os.NewFile(uintptr(fd), ifr.Name())
	if err := configureTUN(ifr.Name(), local, behind); err != nil {
		f.Close()
		return nil, "", err
	}
	return f, ifr.Name(), nil
}

func configureTUN(name string, local netip.Addr, behind netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetMTU(link, linkMTU); err != nil {
		return fmt.Errorf("set MTU of %s: %w", name, err)
	}
	own := &netlink.Addr{IPNet: prefixNet(netip.PrefixFrom(local, local.BitLen()))}
	if err := netlink.AddrAdd(link, own); err != nil {
		return fmt.Errorf("give %s the address %s: %w", name, local, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: prefixNet(behind.Masked()), Src: local.AsSlice()}
	if err := netlink.RouteAppend(route); err != nil { // two calls of one namespace may lead to one server
		return fmt.Errorf("add route to %s: %w", behind, err)
	}
	return nil
}

func prefixNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// destination reads where an IPv4 packet goes.
func destination(ip []byte) (netip.Addr, bool) {
	if len(ip) < 20 || ip[0]>>4 != 4 {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(ip[16:20])
}

// source reads where it comes from.
func source(ip []byte) (netip.Addr, bool) {
	if len(ip) < 20 || ip[0]>>4 != 4 {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(ip[12:16])
}
