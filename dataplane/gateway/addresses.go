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

// Marks tell the Keeper's addresses from an administrator's: a /32 or /128 that
// is deprecated and has no prefix route (one so long has none anyway); in IPv6
// also without duplicate address detection, which would keep the address from
// answering for a second, or for ever while the old owner still has it. The marks
// lie in the kernel, so that a restarted daemon finds them.
const (
	marks4 = unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_DEPRECATED
	marks6 = marks4 | unix.IFA_F_NODAD
)

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
	if gateways, _, err = k.list(k.inside); err != nil {
		return nil, nil, err
	}
	vips, _, err = k.list("lo")
	return gateways, vips, err
}

// Inside lists the subnets of the inside interface: those of its addresses that
// are not ours. IPv6 link-local addresses, which every segment has, are left out.
func (k *KernelAddresses) Inside() ([]netip.Prefix, error) {
	_, subnets, err := k.list(k.inside)
	return subnets, err
}

// list sorts the addresses of an interface into ours and the subnets of the others.
func (k *KernelAddresses) list(name string) (ours []netip.Addr, subnets []netip.Prefix, err error) {
	link, err := k.handle.LinkByName(name)
	if err != nil {
		return nil, nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	list, err := k.handle.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		addr = addr.Unmap()
		marks := marks4
		if addr.Is6() {
			marks = marks6
		}
		ones, _ := a.Mask.Size()
		switch {
		case ones == addr.BitLen() && a.Flags&marks == marks:
			ours = append(ours, addr)
		case !addr.IsLinkLocalUnicast() || addr.Is4():
			subnets = append(subnets, netip.PrefixFrom(addr, ones).Masked())
		}
	}
	return ours, subnets, nil
}

func (k *KernelAddresses) entry(addr netip.Addr, vip bool) (netlink.Link, *netlink.Addr, error) {
	name, flags := k.inside, unix.IFA_F_NOPREFIXROUTE
	if vip {
		name = "lo"
	}
	if addr.Is6() {
		flags |= unix.IFA_F_NODAD
	}
	link, err := k.handle.LinkByName(name)
	if err != nil {
		return nil, nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}, Flags: flags,
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
