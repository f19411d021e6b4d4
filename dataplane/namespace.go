package dataplane

import (
	"fmt"
	"runtime"
	"syscall"

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
	// features numbers the names of device features, once they are known. Used by
	// one goroutine at a time: Attach's, then Run's.
	features map[string]int
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
	xdpFeatureSeveral  = 1 << 6 // NETDEV_XDP_ACT_NDO_XMIT_SG: frames of several buffers
)

// genlHeader is struct genlmsghdr (uapi/linux/genetlink.h). The library's own type has
// two bytes and writes four: it reads what lies behind it in memory.
type genlHeader [nl.SizeofGenlmsg]byte

func (h *genlHeader) Len() int          { return len(h) }
func (h *genlHeader) Serialize() []byte { return h[:] }

// ask puts one question to a generic netlink family and gives the answer's
// attributes; false where there is none.
func (n *namespace) ask(family int, command, version uint8, attr *nl.RtAttr) ([]syscall.NetlinkRouteAttr, bool) {
	request := nl.NewNetlinkRequest(family, unix.NLM_F_ACK)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_GENERIC: n.generic}
	request.AddData(&genlHeader{command, version})
	request.AddData(attr)
	answers, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil || len(answers) == 0 || len(answers[0]) < nl.SizeofGenlmsg {
		return nil, false
	}
	attrs, err := nl.ParseRouteAttr(answers[0][nl.SizeofGenlmsg:])
	return attrs, err == nil
}

// netdevFamilyID is the family's number; false where the kernel has none.
func (n *namespace) netdevFamilyID() (uint16, bool) {
	attrs, _ := n.ask(nl.GENL_ID_CTRL, nl.GENL_CTRL_CMD_GETFAMILY, nl.GENL_CTRL_VERSION,
		nl.NewRtAttr(nl.GENL_CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated(netdevFamily)))
	for _, attr := range attrs {
		if attr.Attr.Type == nl.GENL_CTRL_ATTR_FAMILY_ID && len(attr.Value) >= 2 {
			return nl.NativeEndian().Uint16(attr.Value), true
		}
	}
	return 0, false
}

// xdpFeatures asks the kernel what a device can do; false where it cannot say.
// By device, not by dump: the library takes the first part of this family's dump
// for the whole.
func (n *namespace) xdpFeatures(family uint16, index int) (features uint64, ok bool) {
	attrs, _ := n.ask(int(family), netdevDevGet, 1, nl.NewRtAttr(netdevAttrIfindex, nl.Uint32Attr(uint32(index))))
	for _, attr := range attrs {
		if attr.Attr.Type == netdevAttrFeatures && len(attr.Value) >= 8 {
			return nl.NativeEndian().Uint64(attr.Value), true
		}
	}
	return 0, false
}
