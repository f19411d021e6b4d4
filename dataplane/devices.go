package dataplane

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
)

// maxStack bounds the walk through devices that lie on each other: a virtual
// function below hv_netvsc in a bond are three.
const maxStack = 8

// devices is one look at the kernel's interfaces.
type devices []netlink.Link

func (p *Plane) listDevices() (devices, error) {
	list, err := p.ns.netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return list, nil
}

// at finds a device by index; nil: there is none.
func (d devices) at(index int) netlink.Link {
	if i := slices.IndexFunc(d, func(l netlink.Link) bool { return l.Attrs().Index == index }); i >= 0 {
		return d[i]
	}
	return nil
}

// named finds a device by name; nil: there is none.
func (d devices) named(name string) netlink.Link {
	if i := slices.IndexFunc(d, func(l netlink.Link) bool { return l.Attrs().Name == name }); i >= 0 {
		return d[i]
	}
	return nil
}

// find gives the device that the configuration names. Another name of it is refused:
// the kernel's settings, the forward policy and the counters know the first name alone.
func (d devices) find(name string) (netlink.Link, error) {
	if l := d.named(name); l != nil {
		return l, nil
	}
	for _, l := range d {
		if slices.Contains(l.Attrs().AltNames, name) {
			return nil, fmt.Errorf("interface %s is an alternative name of %s: write %s in the node file", name, l.Attrs().Name, l.Attrs().Name)
		}
	}
	return nil, fmt.Errorf("interface %s does not exist: see ip link", name)
}

// joins reports whether a master's frames come in on its members: of a bond, a team,
// and of what netlink calls a plain device (hv_netvsc above a virtual function,
// net_failover). A bridge and a VRF have masters' indexes too, but no such members.
func joins(master netlink.Link) bool {
	switch master.Type() {
	case "bond", "team", "device":
		return true
	}
	return false
}

// master is the topmost device on whose behalf a device receives; itself where it
// is in no bond.
func (d devices) master(l netlink.Link) netlink.Link {
	for range maxStack {
		above := d.at(l.Attrs().MasterIndex)
		if above == nil || !joins(above) {
			break
		}
		l = above
	}
	return l
}

// members lists the devices below a master, at any depth, by index.
func (d devices) members(index int) devices {
	return slices.DeleteFunc(slices.Clone(d), func(l netlink.Link) bool {
		return l.Attrs().Index == index || d.master(l).Attrs().Index != index
	})
}

// hollow reports whether a device is software alone: all its frames come in on its
// members.
func hollow(l netlink.Link) bool { return l.Type() == "bond" || l.Type() == "team" }

// carriers lists the devices that receive the frames of one: itself and its members,
// without those that are software alone.
func (d devices) carriers(l netlink.Link) devices {
	return slices.DeleteFunc(append(devices{l}, d.members(l.Attrs().Index)...), hollow)
}

// stacked reports whether a device's frames pass the receive path of a device below
// before a program on it sees them.
func stacked(l netlink.Link) bool {
	switch l.Type() {
	case "bridge", "macvlan", "macvtap", "ipvlan", "ipvtap":
		return true
	}
	return false
}

// below lists the cards below a bridge or macvlan; of another device none.
func (d devices) below(l netlink.Link) devices {
	if !stacked(l) {
		return nil
	}
	var out, next devices
	for next = (devices{l}); len(next) > 0 && len(out) < len(d); next = next[1:] {
		at := next[0].Attrs()
		lower := d.at(at.ParentIndex)
		switch {
		case next[0].Type() == "bridge":
			next = append(next, slices.DeleteFunc(slices.Clone(d), func(port netlink.Link) bool { return port.Attrs().MasterIndex != at.Index })...)
		case lower != nil && (stacked(next[0]) || next[0].Type() == "vlan"):
			next = append(next, lower)
		default:
			out = append(out, d.carriers(next[0])...)
		}
	}
	return out
}

// physical gives the device that an interface of the configuration is on: of a VLAN
// device its parent, because the program sees frames there, tagged. It refuses what
// the program would not see as it is.
func (d devices) physical(l netlink.Link) (netlink.Link, error) {
	name, below := l.Attrs().Name, l
	if vlan, ok := l.(*netlink.Vlan); ok {
		if below = d.at(vlan.ParentIndex); below == nil {
			return nil, fmt.Errorf("find the device that %s is on: it is in another network namespace", name)
		}
		switch {
		case below.Type() == "vlan":
			return nil, fmt.Errorf("interface %s is a VLAN device on VLAN device %s: one tag is supported, not two", name, below.Attrs().Name)
		case stacked(below):
			return nil, fmt.Errorf("interface %s is a VLAN device on %s %s, which loses the tag: put it on the card or bond",
				name, below.Type(), below.Attrs().Name)
		}
	}
	if top := d.master(below); top != below {
		return nil, fmt.Errorf("interface %s is a member of %s: name %s instead", below.Attrs().Name, top.Attrs().Name, top.Attrs().Name)
	}
	return below, nil
}
