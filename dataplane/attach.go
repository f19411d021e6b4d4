package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/bucket"
)

// attachment is the program's place on one interface.
type attachment struct {
	name  string
	index int
	link  link.Link
	mode  Mode
	old   bool // another process's program forwards there until the first Resync
	alarm string
	// of names the bond or team whose member this is, where that has no native XDP:
	// its members carry the program, in generic mode. "" = the device itself is wanted.
	of        string
	notNative bool // it came back as one that cannot carry the program itself
	// carriers are the devices that its frames came in on at the last look; nil = none yet.
	carriers map[string]position
}

// load opens the pinned maps, makes the missing ones, and loads the program.
func (p *Plane) load(found bool) error {
	spec, err := bpf.LoadPlane()
	if err != nil {
		return fmt.Errorf("read program: %w", err)
	}
	p.prune(spec)
	for i, family := range affinityFamilies {
		spec.Maps[affinityMaps[i]].MaxEntries = bucket.Buckets(p.cfg.MaxClients, family)
	}
	spec.Maps["affinity_stash"].MaxEntries = 2 * bucket.StashCapacity(p.cfg.MaxClients)
	have, err := p.pinnedMaps(spec)
	if err != nil {
		return err
	}
	defer closeMaps(have)
	for name, value := range map[string]any{
		"hz": p.clock.hz, "tick_shift": p.clock.shift, "next_hop_jiffies": max(p.clock.hz*256/1000, 1),
		"answers_per_second": p.cfg.answersPerSecond(), "affinity_seed": p.meta.AffinitySeed,
		"buckets4": spec.Maps["affinity4"].MaxEntries, "buckets6": spec.Maps["affinity6"].MaxEntries,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s of the program: %w", name, err)
		}
	}
	p.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: have})
	if err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	if p.control, err = mapControl(p.coll.Maps["plane_control"]); err != nil {
		return err
	}
	if err := p.pinMaps(p.coll, have); err != nil {
		return err
	}
	if !found {
		return p.writeMeta(p.meta)
	}
	return nil
}

// prune leaves out what only tests load.
func (p *Plane) prune(spec *ebpf.CollectionSpec) {
	if !p.cfg.bench {
		delete(spec.Programs, "vpnlb_bench")
		delete(spec.Maps, "bench_plans")
	}
}

func (p *Plane) writeMeta(m bpf.PlaneMeta) error {
	if err := p.coll.Maps["plane_meta"].Put(uint32(0), &m); err != nil {
		return fmt.Errorf("write meta map: %w", err)
	}
	return nil
}

// takeOver opens the pinned link of an interface. A link whose interface is gone
// or was replaced is removed.
func (p *Plane) takeOver(a *attachment) (bool, error) {
	pin := p.linkPin(a.name)
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned link of %s: %w", a.name, err)
	}
	info, err := l.Info()
	if err == nil && info.XDP() != nil && int(info.XDP().Ifindex) == a.index {
		a.link = l
		return true, nil
	}
	l.Close()
	if err := os.Remove(pin); err != nil {
		return false, fmt.Errorf("remove dead link of %s: %w", a.name, err)
	}
	return false, nil
}

// modes are the ways to try on a device. A bond or team never gets the program in
// generic mode: its frames come to it without their VLAN tags, and joined.
func (p *Plane) modes(a *attachment, dev netlink.Link) []link.XDPAttachFlags {
	switch {
	case a.of != "", p.cfg.Mode == Generic && !hollow(dev):
		return []link.XDPAttachFlags{link.XDPGenericMode}
	case p.cfg.Mode == Generic:
		return nil
	case p.cfg.Mode == Native, hollow(dev):
		return []link.XDPAttachFlags{link.XDPDriverMode}
	}
	return []link.XDPAttachFlags{link.XDPDriverMode, link.XDPGenericMode}
}

// errNotNative: a bond or team cannot carry the program itself, its members may.
var errNotNative = errors.New("no native xdp")

// attach puts the program on an interface and pins the link.
func (p *Plane) attach(a *attachment) error {
	devices, err := p.listDevices()
	if err != nil {
		return err
	}
	dev := devices.at(a.index)
	if dev == nil {
		return fmt.Errorf("attach to %s: interface is gone", a.name)
	}
	p.quietenAll(devices, dev)
	var failed error
	for _, f := range p.modes(a, dev) {
		for _, d := range devices.carriers(dev) {
			if err := p.introduce(devices, d, f == link.XDPGenericMode); err != nil {
				return err
			}
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: p.coll.Programs["vpnlb"], Interface: a.index, Flags: f})
		if err != nil {
			failed = errors.Join(failed, err)
			if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("attach to %s: another XDP program is there: %w", a.name, err)
			}
			continue
		}
		if err := l.Pin(p.linkPin(a.name)); err != nil {
			l.Close()
			return fmt.Errorf("pin link of %s: %w", a.name, err)
		}
		a.link = l
		if failed != nil {
			p.log.Warn("driver has no native xdp, attached in generic mode", "interface", a.name, "error", failed)
		}
		return nil
	}
	if hollow(dev) && p.cfg.Mode != Native {
		return fmt.Errorf("attach to %s: %w: %w", a.name, errNotNative, cmp.Or(failed, errors.New("generic mode is configured")))
	}
	return fmt.Errorf("attach to %s: %w", a.name, failed)
}

// introduce tells the program the interface's MAC, and how it will be attached, before
// it gets its packets: else it would pass the first ones to the kernel as somebody
// else's.
func (p *Plane) introduce(devices devices, dev netlink.Link, generic bool) error {
	place := uint32(dev.Attrs().Index % interfacePlaces)
	var have bpf.PlaneInterface
	if err := p.coll.Maps["interfaces"].Lookup(place, &have); err != nil {
		return fmt.Errorf("read interface: %w", err)
	}
	v := have
	if fresh := baseInterface(devices, dev); v.Ifindex != fresh.Ifindex || v.Master != fresh.Master {
		v = fresh
		if p.mayBePartial(devices, dev) {
			v.Flags = flagPartial // and not "transmit": the kernel forwards until more is known
		}
	}
	v.Flags &^= flagGeneric
	if generic {
		v.Flags |= flagGeneric
	}
	if v == have {
		return nil
	}
	if err := p.coll.Maps["interfaces"].Put(place, &v); err != nil {
		return fmt.Errorf("write interface: %w", err)
	}
	p.interfaces[place] = v
	return nil
}

// attachAll takes over or attaches every interface.
func (p *Plane) attachAll(found *Pinned) error {
	devices, err := p.listDevices()
	if err != nil {
		return err
	}
	for _, c := range p.cfg.Interfaces {
		dev, err := devices.find(c.Name)
		if err != nil {
			return err
		}
		if dev, err = devices.physical(dev); err != nil {
			return err
		}
		if slices.ContainsFunc(p.attachments, func(a *attachment) bool { return a.index == dev.Attrs().Index }) {
			continue // two VLAN devices of one parent
		}
		a := &attachment{name: dev.Attrs().Name, index: dev.Attrs().Index}
		err = p.attachOne(a, found)
		if errors.Is(err, errNotNative) {
			p.log.Warn("the members get the program, in generic mode", "interface", a.name, "error", err)
			err = p.attachMembers(devices, dev, found)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// attachOne takes over or attaches one device.
func (p *Plane) attachOne(a *attachment, found *Pinned) error {
	taken, err := p.takeOver(a)
	if err != nil {
		return err
	}
	if taken {
		a.old = true
		found.TakenOver = append(found.TakenOver, a.name)
	} else if err := p.attach(a); err != nil {
		return err
	} else {
		found.Attached = append(found.Attached, a.name)
	}
	p.attachments = append(p.attachments, a)
	return nil
}

// adopt puts this binary's program on the links that still run another's. The
// swap is atomic: no packet is without a program.
func (p *Plane) adopt() error {
	for _, a := range p.attachments {
		if !a.old || a.link == nil {
			continue
		}
		if err := a.link.Update(p.coll.Programs["vpnlb"]); err != nil {
			return fmt.Errorf("swap program on %s: %w", a.name, err)
		}
		a.old = false
		p.log.Info("took over interface", "interface", a.name)
	}
	return p.dropLeftovers()
}

// dropLeftovers takes the program off interfaces that are no longer configured,
// and removes the maps of other schemas: no program of theirs is left.
func (p *Plane) dropLeftovers() error {
	names, err := os.ReadDir(p.cfg.PinDir)
	if err != nil {
		return fmt.Errorf("read pin directory: %w", err)
	}
	configured := func(name string) bool {
		return slices.ContainsFunc(p.attachments, func(a *attachment) bool { return a.name == name })
	}
	for _, n := range names {
		name, ok := strings.CutPrefix(n.Name(), "link_")
		if !ok || configured(name) {
			continue
		}
		if err := os.Remove(p.linkPin(name)); err != nil {
			return fmt.Errorf("take program off %s: %w", name, err)
		}
		p.log.Info("took the program off an interface that is not configured", "interface", name)
	}
	quiet, err := p.quietDevices()
	if err != nil {
		return err
	}
	for _, n := range names {
		if name, ok := strings.CutPrefix(n.Name(), offloadPrefix); ok && !quiet[name] {
			if err := p.ns.do(func() error { return restoreOffloads(offloadPin(p.cfg.PinDir, name)) }); err != nil {
				return err
			}
		}
	}
	for _, n := range names {
		if !pinName.MatchString(n.Name()) || !pinOfMap(n.Name()) || strings.HasSuffix(n.Name(), p.cfg.schemaSuffix()) {
			continue
		}
		if strings.HasPrefix(n.Name(), "pending_proofs_") {
			p.inheritProofs(n.Name())
		}
		if err := os.Remove(filepath.Join(p.cfg.PinDir, n.Name())); err != nil {
			return fmt.Errorf("remove a map of another schema: %w", err)
		}
	}
	return nil
}

// reattach follows an interface that was replaced by one of the same name.
func (p *Plane) reattach(a *attachment, dev netlink.Link) error {
	if a.link != nil {
		a.link.Close()
		a.link = nil
	}
	if err := os.Remove(p.linkPin(a.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove dead link of %s: %w", a.name, err)
	}
	a.index, a.old, a.carriers = dev.Attrs().Index, false, nil
	return p.ns.do(func() error { return p.attach(a) })
}

// raiseMemlock matters to no kernel that the program runs on; where it may not
// be raised, nothing is lost.
func (p *Plane) raiseMemlock() {
	if err := rlimit.RemoveMemlock(); err != nil {
		p.log.Debug("memlock limit stays", "error", err)
	}
}
