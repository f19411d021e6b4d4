package dataplane

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
)

// interfacePlaces is the size of the interface map, by index modulo.
const interfacePlaces = 1024

// Flags of bpf.PlaneInterface, as in bpf/consts.h.
const (
	flagPartial  = 1
	flagTransmit = 2
	flagXDPTX    = 4
	flagSeveral  = 8
	flagDirect   = 128 // of a next hop
)

// partialDrivers may hand a frame to XDP whose checksum a device was to complete.
var partialDrivers = map[string]bool{"veth": true, "virtio_net": true, "tun": true, "tap": true}

// refreshInterfaces compares what the program knows of the interfaces with what
// the kernel says, and mends the difference. It reports whether there was one.
// Not safe for several goroutines: Attach first, then Run's alone.
func (p *Plane) refreshInterfaces() (changed bool, err error) {
	devices, err := p.ns.netlink.LinkList()
	if err != nil {
		return false, fmt.Errorf("list interfaces: %w", err)
	}
	byName := make(map[string]netlink.Link, len(devices))
	for _, d := range devices {
		byName[d.Attrs().Name] = d
	}
	p.checkAttachments(byName)
	want := p.renderInterfaces(devices)
	for place, have := range p.interfaces {
		if _, ok := want[place]; !ok {
			want[place] = bpf.PlaneInterface{}
		}
		if want[place] == have {
			delete(want, place)
		}
	}
	for place, value := range want {
		if err := p.coll.Maps["interfaces"].Put(place, &value); err != nil {
			return true, fmt.Errorf("write interface: %w", err)
		}
		if value.Ifindex == 0 {
			delete(p.interfaces, place)
		} else {
			p.interfaces[place] = value
		}
	}
	return len(want) != 0, nil
}

// readInterfaces learns what a former process wrote, so that leftovers go.
func (p *Plane) readInterfaces() error {
	var v bpf.PlaneInterface
	for place := uint32(0); place < interfacePlaces; place++ {
		if err := p.coll.Maps["interfaces"].Lookup(place, &v); err != nil {
			return fmt.Errorf("read interface: %w", err)
		}
		if v.Ifindex != 0 {
			p.interfaces[place] = v
		}
	}
	return nil
}

// checkAttachments learns how the program is attached, and follows an interface
// that came back under its name.
func (p *Plane) checkAttachments(byName map[string]netlink.Link) {
	p.status.Lock()
	defer p.status.Unlock()
	for _, a := range p.attachments {
		dev := byName[a.name]
		was := a.alarm
		switch {
		case dev == nil:
			a.alarm = "interface is gone"
		case dev.Attrs().Index != a.index || a.link == nil:
			a.alarm = ""
			if err := p.reattach(a, dev); err != nil {
				a.alarm = err.Error()
			}
		case dev.Attrs().Xdp == nil || !dev.Attrs().Xdp.Attached:
			a.alarm = "program is not attached"
		case dev.Attrs().Xdp.AttachMode == nl.XDP_ATTACHED_SKB:
			a.mode, a.alarm = Generic, "generic xdp: several times slower than native"
			if p.cfg.Mode == Generic {
				a.alarm = ""
			}
		default:
			a.mode, a.alarm = Native, ""
		}
		if a.alarm != was {
			p.log.Warn("interface state changed", "interface", a.name, "alarm", a.alarm)
		}
	}
}

// renderInterfaces gives the desired map. The program's own interfaces take
// their places first; one that finds its place taken is left out, which means
// that the program passes its packets to the kernel.
func (p *Plane) renderInterfaces(devices []netlink.Link) map[uint32]bpf.PlaneInterface {
	own := make(map[int]*attachment)
	generic := len(p.attachments) > 0
	for _, a := range p.attachments {
		own[a.index] = a
		generic = generic && a.mode == Generic
	}
	family, haveFamily := p.ns.netdevFamilyID()
	want := make(map[uint32]bpf.PlaneInterface)
	for _, ownPass := range []bool{true, false} {
		for _, d := range devices {
			attrs := d.Attrs()
			a := own[attrs.Index]
			place := uint32(attrs.Index % interfacePlaces)
			if _, taken := want[place]; (a != nil) != ownPass || taken {
				continue
			}
			driver := p.driver(attrs.Index, attrs.Name)
			v := bpf.PlaneInterface{Ifindex: uint32(attrs.Index), Mtu: uint32(attrs.MTU), Lower: uint32(attrs.Index)}
			copy(v.Mac[:], attrs.HardwareAddr)
			var features uint64
			known := false
			if haveFamily && !generic {
				features, known = p.ns.xdpFeatures(family, attrs.Index)
			}
			// Generic XDP transmits by the ordinary way, which every device has.
			// Where the kernel cannot say, an interface that took the program
			// natively is believed to transmit too.
			if generic || known && features&xdpFeatureTransmit != 0 ||
				!known && a != nil && a.mode == Native {
				v.Flags |= flagTransmit
			}
			if generic || known && features&xdpFeatureSeveral != 0 {
				v.Flags |= flagSeveral
			}
			if partialDrivers[driver] {
				v.Flags |= flagPartial
			}
			// On veth XDP_TX needs a program at the peer, a redirect only GRO.
			if a != nil && a.mode == Native && driver != "veth" {
				v.Flags |= flagXDPTX
			}
			want[place] = v
		}
	}
	return want
}

// driver remembers the driver of an interface: it cannot change.
func (p *Plane) driver(index int, name string) string {
	d, ok := p.drivers[index]
	if !ok {
		d = p.ns.driver(name)
		p.drivers[index] = d
	}
	return d
}

// interfaceStatus tells of each configured interface.
func (p *Plane) interfaceStatus() []InterfaceStatus {
	p.status.Lock()
	defer p.status.Unlock()
	out := make([]InterfaceStatus, 0, len(p.attachments))
	for _, a := range p.attachments {
		s := InterfaceStatus{Name: a.name, Index: a.index, Mode: a.mode, Alarm: a.alarm}
		var v bpf.PlaneInterface
		if err := p.coll.Maps["interfaces"].Lookup(uint32(a.index%interfacePlaces), &v); err == nil && int(v.Ifindex) == a.index {
			s.MAC, s.MTU = net.HardwareAddr(v.Mac[:]).String(), int(v.Mtu)
			s.Transmit, s.Partial = v.Flags&flagTransmit != 0, v.Flags&flagPartial != 0
		}
		s.Driver = p.ns.driver(a.name)
		if a.link != nil {
			if info, err := a.link.Info(); err == nil {
				s.ProgramID = uint32(info.Program)
			}
		}
		out = append(out, s)
	}
	return out
}
