package lab

import (
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Commands of SIOCETHTOOL (linux/ethtool.h).
const (
	ethtoolSetTxCsum = 0x17
	ethtoolSetTSO    = 0x1f
	ethtoolSetGSO    = 0x24
	ethtoolSetGRO    = 0x2c
)

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct{ cmd, data uint32 }

// ifreqData is struct ifreq with ifr_data.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// setOffloads prepares one end of a veth pair, in the caller's namespace.
//
// Transmit checksums and segmentation off: what is born on a veth otherwise
// carries only the pseudo-header's sum, XDP forgets that mark when it turns
// the packet into a frame, and the receiver drops it. GRO makes the device
// poll (NAPI), without which frames redirected to its peer are lost. Only a
// node's own legs need it for that: the far ends of these have the pass program,
// and elsewhere it would make one of several TCP segments before they are counted.
func setOffloads(name string, gro bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open ioctl socket: %w", err)
	}
	defer unix.Close(fd)
	set := []ethtoolValue{{ethtoolSetTSO, 0}, {ethtoolSetGSO, 0}, {ethtoolSetTxCsum, 0}, {ethtoolSetGRO, 0}}
	if gro {
		set[len(set)-1].data = 1
	}
	for _, v := range set {
		req := ifreqData{data: unsafe.Pointer(&v)}
		copy(req.name[:unix.IFNAMSIZ-1], name)
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); e != 0 {
			return fmt.Errorf("set offload %#x of %s to %d: %w", v.cmd, name, v.data, e)
		}
	}
	return nil
}

// xdpPass loads a program that passes everything. At the far end of a node's
// veth it makes the device able to take the frames that the node transmits by
// XDP_TX, which GRO alone does not [measured].
func xdpPass() (*ebpf.Program, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lab_pass", Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	})
	if err != nil {
		return nil, fmt.Errorf("load pass program: %w", err)
	}
	return p, nil
}

const xdpFlagsDriver = 1 << 2 // XDP_FLAGS_DRV_MODE (linux/if_link.h)

// attachPass attaches without a BPF link, so the program stays with the device.
func attachPass(link netlink.Link) error {
	p, err := xdpPass()
	if err != nil {
		return err
	}
	defer p.Close()
	if err := netlink.LinkSetXdpFdWithFlags(link, p.FD(), xdpFlagsDriver); err != nil {
		return fmt.Errorf("attach pass program to %s: %w", link.Attrs().Name, err)
	}
	return nil
}
