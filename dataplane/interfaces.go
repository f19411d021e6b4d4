package dataplane

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
)

// interfacePlaces is the size of the interface map, by index modulo.
const interfacePlaces = 1024

// maxVLANs is the size of the map of VLAN devices on our interfaces: the first by
// index have the program, the rest are the kernel's.
const maxVLANs = 64

// Flags of bpf.PlaneInterface, as in bpf/consts.h.
const (
	flagPartial  = 1
	flagTransmit = 2
	flagXDPTX    = 4
	flagSeveral  = 8
	flagGeneric  = 16
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
	p.checkAttachments(byName, devices)
	want := p.renderInterfaces(devices)
	if err := p.mendVLANs(want); err != nil {
		return true, err
	}
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
func (p *Plane) checkAttachments(byName map[string]netlink.Link, devices []netlink.Link) {
	p.status.Lock()
	defer p.status.Unlock()
	pinAlarm := p.mendPins(time.Now())
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
			if p.synced.Load() { // somebody took it off; before, the tables are not ours to use
				if err := p.reattach(a, dev); err != nil {
					a.alarm += ": " + err.Error()
				}
			}
		case dev.Attrs().Xdp.AttachMode == nl.XDP_ATTACHED_SKB:
			a.mode, a.alarm = Generic, "generic xdp: several times slower than native"
			if p.cfg.Mode == Generic {
				a.alarm = ""
			}
		default:
			a.mode, a.alarm = Native, ""
		}
		if a.alarm == "" && p.collides(a) {
			a.alarm = fmt.Sprintf("interface index %d equals another one's modulo %d: its packets go to the kernel; make the interface anew", a.index, interfacePlaces)
		}
		if a.alarm == "" {
			a.alarm = p.frameAlarm(a, onVLAN(devices, a.index))
		}
		if a.alarm == "" {
			a.alarm = pinAlarm
		}
		if a.alarm != was {
			p.log.Warn("interface state changed", "interface", a.name, "alarm", a.alarm)
		}
	}
}

// collides: does an interface before this one have its place in the map?
func (p *Plane) collides(a *attachment) bool {
	for _, b := range p.attachments {
		if b == a {
			return false
		}
		if b.index%interfacePlaces == a.index%interfacePlaces {
			return true
		}
	}
	return false
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
	features := func(index int) (uint64, bool) {
		if !haveFamily || generic {
			return 0, false
		}
		return p.ns.xdpFeatures(family, index)
	}
	want := make(map[uint32]bpf.PlaneInterface)
	for _, ownPass := range []bool{true, false} {
		for _, d := range devices {
			index := d.Attrs().Index
			place := uint32(index % interfacePlaces)
			if _, taken := want[place]; (own[index] != nil) != ownPass || taken {
				continue
			}
			want[place] = p.renderInterface(d, own, generic, features)
		}
	}
	return want
}

// renderInterface says what the program must know of one interface. A VLAN device
// sends through its parent, with a tag, and can what that can.
func (p *Plane) renderInterface(d netlink.Link, own map[int]*attachment, generic bool, features func(int) (uint64, bool)) bpf.PlaneInterface {
	attrs := d.Attrs()
	v := bpf.PlaneInterface{Ifindex: uint32(attrs.Index), Mtu: uint32(attrs.MTU), Lower: uint32(attrs.Index)}
	copy(v.Mac[:], attrs.HardwareAddr)
	lower := attrs.Index
	if vlan, ok := d.(*netlink.Vlan); ok {
		lower = attrs.ParentIndex
		v.Lower, v.Vlan = uint32(lower), uint16(vlan.VlanId)
	}
	a := own[lower]
	can, known := features(lower)
	// Generic XDP transmits by the ordinary way, which every device has. Where the
	// kernel cannot say, an interface that took the program natively is believed to
	// transmit too.
	if generic || known && can&xdpFeatureTransmit != 0 || !known && a != nil && a.mode == Native {
		v.Flags |= flagTransmit
	}
	if generic || known && can&xdpFeatureSeveral != 0 {
		v.Flags |= flagSeveral
	}
	driver := p.driver(lower, attrs.Name)
	if partialDrivers[driver] {
		v.Flags |= flagPartial
	}
	if a != nil && a.mode == Generic {
		v.Flags |= flagGeneric
	}
	// On veth XDP_TX needs a program at the peer, a redirect only GRO.
	if a != nil && a.mode == Native && driver != "veth" {
		v.Flags |= flagXDPTX
	}
	return v
}

// mendVLANs brings the map of VLAN devices to the interfaces that are wanted.
func (p *Plane) mendVLANs(interfaces map[uint32]bpf.PlaneInterface) error {
	want := make(map[bpf.PlaneVlanKey]uint32)
	own := make(map[uint32]bool)
	for _, a := range p.attachments {
		own[uint32(a.index)] = true
	}
	var devices []bpf.PlaneInterface
	for _, v := range interfaces {
		if v.Vlan != 0 && own[v.Lower] {
			devices = append(devices, v)
		}
	}
	slices.SortFunc(devices, func(a, b bpf.PlaneInterface) int { return cmp.Compare(a.Ifindex, b.Ifindex) })
	for _, v := range devices[:min(len(devices), maxVLANs)] {
		want[bpf.PlaneVlanKey{Lower: v.Lower, Vlan: uint32(v.Vlan)}] = v.Ifindex
	}
	m := p.coll.Maps["vlans"]
	var stale []bpf.PlaneVlanKey
	for b := range mapBatches[bpf.PlaneVlanKey, uint32](m) {
		if b.err != nil {
			return b.err
		}
		for i, k := range b.keys {
			if index, ok := want[k]; !ok {
				stale = append(stale, k)
			} else if index == b.values[i] {
				delete(want, k)
			}
		}
	}
	for _, k := range stale {
		if err := m.Delete(&k); err != nil {
			return fmt.Errorf("forget VLAN device: %w", err)
		}
	}
	for k, index := range want {
		if err := m.Put(&k, index); err != nil {
			return fmt.Errorf("write VLAN device: %w", err)
		}
	}
	return nil
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
