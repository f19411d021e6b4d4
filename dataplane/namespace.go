package dataplane

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is the network namespace that Attach was called in: all netlink and
// attaching happens there, whatever thread it is done from.
type namespace struct {
	handle  netns.NsHandle
	netlink *netlink.Handle
	generic *nl.SocketHandle
	ioctl   int // a socket for driver questions
}

func openNamespace() (*namespace, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	handle, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	n := &namespace{handle: handle, ioctl: -1}
	if n.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_GENERIC); err != nil {
		n.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_GENERIC)
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("open generic netlink: %w", err)
	}
	n.generic = &nl.SocketHandle{Socket: socket}
	if n.ioctl, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		n.Close()
		return nil, fmt.Errorf("open ioctl socket: %w", err)
	}
	return n, nil
}

// do runs f on a thread in the namespace.
func (n *namespace) do(f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer home.Close()
	if err := netns.Set(n.handle); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	failed := f()
	if err := netns.Set(home); err != nil {
		// The thread stays locked and dies with its goroutine: nobody else may
		// run in the wrong namespace.
		return fmt.Errorf("leave network namespace: %w", err)
	}
	runtime.UnlockOSThread()
	return failed
}

// driver names an interface's driver; empty where the kernel does not say.
func (n *namespace) driver(name string) string {
	info, err := unix.IoctlGetEthtoolDrvinfo(n.ioctl, name)
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.Driver[:])
}

func (n *namespace) Close() {
	if n.netlink != nil {
		n.netlink.Close()
	}
	if n.generic != nil {
		n.generic.Close()
	}
	if n.ioctl >= 0 {
		unix.Close(n.ioctl)
	}
	n.handle.Close()
}

// Generic netlink family "netdev", Linux 6.3 and later (uapi/linux/netdev.h).
const (
	netdevFamily       = "netdev"
	netdevDevGet       = 1
	netdevAttrIfindex  = 1
	netdevAttrFeatures = 3
	xdpFeatureTransmit = 1 << 2 // NETDEV_XDP_ACT_NDO_XMIT
)

// xdpFeatures asks the kernel which devices transmit XDP frames. ok is false
// where the kernel cannot say.
func (n *namespace) xdpFeatures() (features map[int]uint64, ok bool) {
	family, err := n.netlink.GenlFamilyGet(netdevFamily)
	if err != nil {
		return nil, false
	}
	request := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_DUMP)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_GENERIC: n.generic}
	request.AddData(&nl.Genlmsg{Command: netdevDevGet, Version: 1})
	answers, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return nil, false
	}
	features = make(map[int]uint64, len(answers))
	for _, a := range answers {
		if len(a) < nl.SizeofGenlmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(a[nl.SizeofGenlmsg:])
		if err != nil {
			continue
		}
		index, value := 0, uint64(0)
		for _, attr := range attrs {
			switch {
			case attr.Attr.Type == netdevAttrIfindex && len(attr.Value) >= 4:
				index = int(nl.NativeEndian().Uint32(attr.Value))
			case attr.Attr.Type == netdevAttrFeatures && len(attr.Value) >= 8:
				value = nl.NativeEndian().Uint64(attr.Value)
			}
		}
		features[index] = value
	}
	return features, true
}
