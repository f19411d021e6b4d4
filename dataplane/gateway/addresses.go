package gateway

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// marks tell the Keeper's addresses from an administrator's: a /32 that is
// deprecated (never chosen as a source) and has no prefix route (a /32 has none
// anyway). The marks lie in the kernel, so that a restarted daemon finds them.
const marks = unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_DEPRECATED

// KernelAddresses keeps gateway addresses on the inside interface and VIPs on lo,
// by netlink, in the network namespace of the thread that opened it.
type KernelAddresses struct {
	handle *netlink.Handle
	inside string
}

// OpenAddresses opens netlink. The interface may be absent: it is looked for at
// each call.
func OpenAddresses(inside string) (*KernelAddresses, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &KernelAddresses{handle: h, inside: inside}, nil
}

// Close closes the socket. The addresses stay.
func (k *KernelAddresses) Close() { k.handle.Close() }

// Ours lists the marked addresses.
func (k *KernelAddresses) Ours() (gateways, vips []netip.Addr, err error) {
	if gateways, err = k.marked(k.inside); err != nil {
		return nil, nil, err
	}
	vips, err = k.marked("lo")
	return gateways, vips, err
}

func (k *KernelAddresses) marked(name string) ([]netip.Addr, error) {
	link, err := k.handle.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	list, err := k.handle.AddrList(link, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	var out []netip.Addr
	for _, a := range list {
		ones, _ := a.Mask.Size()
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok && ones == 32 && a.Flags&marks == marks {
			out = append(out, addr)
		}
	}
	return out, nil
}

func (k *KernelAddresses) entry(addr netip.Addr, vip bool) (netlink.Link, *netlink.Addr, error) {
	if !addr.Is4() {
		return nil, nil, fmt.Errorf("address %v: only IPv4 is kept", addr)
	}
	name := k.inside
	if vip {
		name = "lo"
	}
	link, err := k.handle.LinkByName(name)
	if err != nil {
		return nil, nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}, Flags: unix.IFA_F_NOPREFIXROUTE,
		ValidLft: math.MaxUint32, PreferedLft: 0} // valid for ever, preferred never: deprecated
	return link, a, nil
}

// Add puts addr on its interface; it may be there already, also unmarked.
func (k *KernelAddresses) Add(addr netip.Addr, vip bool) error {
	link, a, err := k.entry(addr, vip)
	if err != nil {
		return err
	}
	if err := k.handle.AddrAdd(link, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add %v to %s: %w", addr, link.Attrs().Name, err)
	}
	return nil
}

// Remove takes addr away; it may be gone already.
func (k *KernelAddresses) Remove(addr netip.Addr, vip bool) error {
	link, a, err := k.entry(addr, vip)
	if err != nil {
		return err
	}
	if err := k.handle.AddrDel(link, a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove %v from %s: %w", addr, link.Attrs().Name, err)
	}
	return nil
}
