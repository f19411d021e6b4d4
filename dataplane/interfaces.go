package dataplane

import (
	"cmp"
	"errors"
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

// vlanService stands beside a VLAN ID: the tag is one of 802.1ad, as in bpf/consts.h.
const vlanService = 0x1000

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
// Of a device that joins others in software the frames of local senders come unfinished too.
var partialDrivers = map[string]bool{"veth": true, "virtio_net": true, "tun": true, "tap": true,
	"vif": true, "xen_netfront": true, // Xen: neighbours on the same host
	"vmxnet3": true, "hv_netvsc": true, "ibmveth": true, // VMware, Hyper-V, POWER: the same
	"bridge": true, "macvlan": true, "macvtap": true, "ipvlan": true, "team": true, "openvswitch": true, "dummy": true}

// refreshInterfaces compares what the program knows of the interfaces with what
// the kernel says, and mends the difference. It reports whether there was one.
// Not safe for several goroutines: Attach first, then Run's alone.
func (p *Plane) refreshInterfaces() (changed bool, err error) {
	devices, err := p.listDevices()
	if err != nil {
		return false, err
	}
	p.checkAttachments(devices)
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
func (p *Plane) checkAttachments(devices devices) {
	p.status.Lock()
	defer p.status.Unlock()
	pinAlarm := p.mendPins(time.Now())
	p.followMembers(devices)
	for _, a := range p.attachments {
		dev := devices.named(a.name)
		was := a.alarm
		switch {
		case dev == nil:
			a.alarm = "interface is gone"
		case dev.Attrs().Index != a.index || a.link == nil:
			a.alarm = ""
			if err := p.reattach(a, dev); err != nil {
				a.alarm = err.Error()
				a.notNative = errors.Is(err, errNotNative)
			}
		case dev.Attrs().Xdp == nil || !dev.Attrs().Xdp.Attached:
			a.alarm = "program is not attached"
			if p.synced.Load() { // somebody took it off; before, the tables are not ours to use
				if err := p.reattach(a, dev); err != nil {
					a.alarm += ": " + err.Error()
				}
			}
		case dev.Attrs().Xdp.AttachMode == nl.XDP_ATTACHED_SKB:
			a.mode, a.alarm = Generic, p.genericAlarm(devices, a)
		default:
			a.mode, a.alarm = Native, ""
		}
		if dev != nil {
			p.quietenNew(devices, dev, a)
		}
		if a.alarm == "" && p.collides(a) {
			a.alarm = fmt.Sprintf("interface index %d equals another one's modulo %d: its packets go to the kernel; make the interface anew", a.index, interfacePlaces)
		}
		if a.alarm == "" {
			a.alarm = p.frameAlarm(devices, dev)
		}
		if a.alarm == "" {
			a.alarm = pinAlarm
		}
		if a.alarm != was {
			p.log.Warn("interface state changed", "interface", a.name, "alarm", a.alarm)
		}
	}
	p.giveToMembers()
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
func (p *Plane) renderInterfaces(devices devices) map[uint32]bpf.PlaneInterface {
	own := p.attachedAt(devices)
	generic := len(p.attachments) > 0
	for _, a := range p.attachments {
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
			want[place] = p.renderInterface(devices, d, own, generic, features)
		}
	}
	return want
}

// attachedAt finds the attachment by which the frames of a device come: its own, that
// of the bond it is in, or that of a bond's members.
func (p *Plane) attachedAt(devices devices) map[int]*attachment {
	own := make(map[int]*attachment)
	for _, a := range p.attachments {
		own[a.index] = a
		dev := devices.at(a.index)
		if dev == nil {
			continue
		}
		top := devices.master(dev).Attrs().Index
		if own[top] == nil {
			own[top] = a
		}
	}
	for _, d := range devices {
		index := d.Attrs().Index
		if a := own[devices.master(d).Attrs().Index]; a != nil && own[index] == nil {
			own[index] = a
		}
	}
	return own
}

// baseInterface says of an interface where its frames come in and go out: its own
// index; of a VLAN device its parent's, with a tag; of a bond's member the bond's.
// The MAC is the device's own: the kernel, too, takes a member's frames by that.
func baseInterface(devices devices, d netlink.Link) bpf.PlaneInterface {
	attrs := d.Attrs()
	top := uint32(devices.master(d).Attrs().Index)
	v := bpf.PlaneInterface{Ifindex: uint32(attrs.Index), Mtu: uint32(attrs.MTU), Lower: top, Master: top}
	copy(v.Mac[:], attrs.HardwareAddr)
	if vlan, ok := d.(*netlink.Vlan); ok {
		v.Lower, v.Vlan = uint32(attrs.ParentIndex), uint16(vlan.VlanId)
		if vlan.VlanProtocol == netlink.VLAN_PROTOCOL_8021AD {
			v.Vlan |= vlanService
		}
	}
	return v
}

// renderInterface says what the program must know of one interface. A VLAN device and
// a bond's member send through another one, and can what that can.
func (p *Plane) renderInterface(devices devices, d netlink.Link, own map[int]*attachment, generic bool,
	features func(int) (uint64, bool)) bpf.PlaneInterface {
	v := baseInterface(devices, d)
	lower := int(v.Lower)
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
	below := devices.at(lower)
	if below == nil { // in another network namespace
		below = d
	}
	if p.mayBePartial(devices, below) {
		v.Flags |= flagPartial
	}
	if a != nil && a.mode == Generic {
		v.Flags |= flagGeneric
	}
	// On veth XDP_TX needs a program at the peer, a redirect only GRO. A bond chooses the
	// member, so its frames are redirected to it.
	if a != nil && a.mode == Native && p.driver(lower, below.Attrs().Name) != "veth" && len(devices.members(lower)) == 0 {
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
		own[interfaces[uint32(a.index%interfacePlaces)].Master] = true // of a member with the program
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

// mayBePartial: may a device hand a frame to the program whose checksum another was
// to complete? A bond hands over what its members do.
func (p *Plane) mayBePartial(devices devices, l netlink.Link) bool {
	return slices.ContainsFunc(devices.carriers(l), func(c netlink.Link) bool {
		return partialDrivers[p.driver(c.Attrs().Index, c.Attrs().Name)]
	})
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
