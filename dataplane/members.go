package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
)

// attachMembers gives the program to the members of a bond or team that cannot carry
// it natively. One without members yet gets them by followMembers.
func (p *Plane) attachMembers(devices devices, master netlink.Link, found *Pinned) error {
	name := master.Attrs().Name
	p.byMembers = append(p.byMembers, name)
	for _, m := range devices.carriers(master) {
		if err := p.attachOne(&attachment{name: m.Attrs().Name, index: m.Attrs().Index, of: name}, found); err != nil {
			return fmt.Errorf("member of %s: %w", name, err)
		}
	}
	return nil
}

// giveToMembers lets the members carry the program of a bond that was made anew in a
// mode without native XDP. They get it at the next look.
func (p *Plane) giveToMembers() {
	p.attachments = slices.DeleteFunc(p.attachments, func(a *attachment) bool {
		if a.notNative {
			p.byMembers = append(p.byMembers, a.name)
		}
		return a.notNative
	})
}

// followMembers gives the program to new members of such bonds, and takes it off those
// that left. Under the lock of status.
func (p *Plane) followMembers(devices devices) {
	for _, name := range p.byMembers {
		master := devices.named(name)
		if master == nil {
			continue // its members are alarms already, or free and kept until it is back
		}
		carriers := devices.carriers(master)
		p.attachments = slices.DeleteFunc(p.attachments, func(a *attachment) bool {
			if a.of != name || carriers.named(a.name) != nil || devices.named(a.name) == nil {
				return false
			}
			p.log.Info("took the program off a former member", "interface", a.name, "master", name)
			if err := p.letGo(a); err != nil {
				p.log.Warn("cannot take the program off a former member", "interface", a.name, "error", err)
			}
			return true
		})
		for _, m := range carriers {
			if slices.ContainsFunc(p.attachments, func(a *attachment) bool { return a.name == m.Attrs().Name }) {
				continue
			}
			a := &attachment{name: m.Attrs().Name, index: m.Attrs().Index, of: name}
			if err := p.ns.do(func() error { return p.attach(a) }); err != nil {
				a.alarm = err.Error() // tried again at the next look
			}
			p.attachments = append(p.attachments, a)
		}
	}
}

// letGo takes the program off a device and gives its offloads back.
func (p *Plane) letGo(a *attachment) error {
	if a.link != nil {
		a.link.Close()
	}
	if err := os.Remove(p.linkPin(a.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove link of %s: %w", a.name, err)
	}
	return p.ns.do(func() error { return restoreOffloads(offloadPin(p.cfg.PinDir, a.name)) })
}

// quietenNew switches off the offloads of members that came after the last look: the
// kernel gave them a bond's program at once, and they carry nothing yet. Former members
// get theirs back.
func (p *Plane) quietenNew(devices devices, dev netlink.Link, a *attachment) {
	now := placed(devices, dev)
	for name, at := range now {
		if _, had := a.carriers[name]; !had && a.carriers != nil {
			p.log.Info("a member was added", "interface", a.name, "member", name)
			p.quieten(name, at)
		}
	}
	for name := range a.carriers {
		if _, is := now[name]; is {
			continue
		}
		if err := p.ns.do(func() error { return restoreOffloads(offloadPin(p.cfg.PinDir, name)) }); err != nil {
			p.log.Warn("cannot switch the offloads of a former member on again", "member", name, "error", err)
		}
	}
	a.carriers = now
}

// genericAlarm says that an attachment is generic although it was not configured so,
// and, of a bond, why.
func (p *Plane) genericAlarm(devices devices, a *attachment) string {
	const slow = "generic xdp: several times slower than native"
	switch {
	case a.of == "" && p.cfg.Mode == Generic:
		return ""
	case a.of == "":
		return slow
	}
	bond, ok := devices.named(a.of).(*netlink.Bond)
	switch {
	case p.cfg.Mode == Generic:
		return ""
	case ok && !nativeMode(bond):
		return fmt.Sprintf("%s: %s has mode %s, only active-backup, balance-rr, 802.3ad and balance-xor have it", slow, a.of, modeWords(bond))
	}
	return fmt.Sprintf("%s: %s has a member whose driver lacks it, or had when the program came", slow, a.of)
}

// nativeMode reports whether a bond's mode has native XDP (bond_xdp_check in the
// kernel's bond_main.c).
func nativeMode(b *netlink.Bond) bool {
	switch b.Mode {
	case netlink.BOND_MODE_BALANCE_RR, netlink.BOND_MODE_ACTIVE_BACKUP:
		return true
	case netlink.BOND_MODE_802_3AD, netlink.BOND_MODE_BALANCE_XOR:
		return b.XmitHashPolicy != netlink.BOND_XMIT_HASH_POLICY_VLAN_SRCMAC
	}
	return false
}

func modeWords(b *netlink.Bond) string {
	words := b.Mode.String()
	if b.XmitHashPolicy == netlink.BOND_XMIT_HASH_POLICY_VLAN_SRCMAC {
		words += " with hash policy vlan+srcmac"
	}
	return words
}
