package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// offload is a receive feature of a device that gives the program other frames
// than those on the wire.
type offload struct {
	feature string // the kernel's name of it
	option  string // ethtool -K's name of it
	why     string
	vlan    bool // matters only below a VLAN device
	below   bool // matters only below a bridge or macvlan with the program
}

// offloads, in the order of alarms. Receive offload in software (rx-gro) comes after a
// native program, and the kernel does without it on a device that has a generic one; but
// below a bridge or macvlan it comes before.
var offloads = []offload{
	{feature: "rx-lro", option: "lro", why: "the device joins packets into frames that nobody sent"},
	{feature: "rx-gro-hw", option: "rx-gro-hw", why: "the device joins packets into frames that nobody sent"},
	{feature: "rx-vlan-hw-parse", option: "rxvlan", why: "the device takes the VLAN tag out of the frame", vlan: true},
	{feature: "rx-gro", option: "gro", why: "the device joins packets into frames that nobody sent", below: true},
}

// position says how a device lies to a program: whether a VLAN device is on it, and whether
// the program is not on it but on a bridge or macvlan above.
type position struct{ vlan, below bool }

// disturbing gives those of a device's active features that must be off before a
// program is attached.
func disturbing(active map[string]bool, at position) []offload {
	return slices.DeleteFunc(slices.Clone(offloads), func(o offload) bool {
		return !active[o.feature] || o.vlan && !at.vlan || o.below && !at.below
	})
}

// disturbed gives those that disturb an attached program. virtio_net joins nothing
// while it has one, whatever its flags say, and lets nobody change them.
func disturbed(active map[string]bool, at position, driver string) []offload {
	return slices.DeleteFunc(disturbing(active, at), func(o offload) bool { return driver == "virtio_net" && !at.below && !o.vlan })
}

// offloadAlarm says what is wrong with a device and how to mend it; "" = nothing.
func offloadAlarm(device string, left []offload) string {
	if len(left) == 0 {
		return ""
	}
	var why []string
	fix := "ethtool -K " + device
	for _, o := range left {
		if !slices.Contains(why, o.why) {
			why = append(why, o.why)
		}
		fix += " " + o.option + " off"
	}
	return strings.Join(why, ", ") + ": run " + fix
}

// onVLAN: does a VLAN device lie on the one with this index? The program takes the
// tags of all of them for its own.
func onVLAN(devices devices, index int) bool {
	return slices.ContainsFunc(devices, func(d netlink.Link) bool {
		_, is := d.(*netlink.Vlan)
		return is && d.Attrs().ParentIndex == index
	})
}

// offloadPin remembers what was switched off, for who detaches: a symbolic link
// whose target lists the features (a bpffs holds no files).
func offloadPin(dir, device string) string {
	return filepath.Join(dir, offloadPrefix+device)
}

const offloadPrefix = "offloads_"

// placed lists the devices that receive the frames of one, and how they lie to its program.
func placed(devices devices, dev netlink.Link) map[string]position {
	out := make(map[string]position)
	vlan := onVLAN(devices, devices.master(dev).Attrs().Index)
	for _, d := range devices.carriers(dev) {
		out[d.Attrs().Name] = position{vlan: vlan}
	}
	for _, d := range devices.below(dev) {
		out[d.Attrs().Name] = position{below: true}
	}
	return out
}

// quietDevices lists the devices that receive the frames of any attachment: members, too.
func (p *Plane) quietDevices() (map[string]bool, error) {
	devices, err := p.listDevices()
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool)
	for _, a := range p.attachments {
		out[a.name] = true
		if dev := devices.at(a.index); dev != nil {
			for name := range placed(devices, dev) {
				out[name] = true
			}
		}
	}
	return out, nil
}

// quietenAll does so on all devices that receive the frames of one.
func (p *Plane) quietenAll(devices devices, dev netlink.Link) {
	for name, at := range placed(devices, dev) {
		p.quieten(name, at)
	}
}

// quieten switches off what must be off, before the program is attached: the
// change may stop a device for a moment, so it is made at no other time. What
// cannot be switched off stays an alarm of checkAttachments.
func (p *Plane) quieten(device string, at position) {
	active, err := p.ns.activeFeatures(device)
	if err != nil {
		p.log.Debug("cannot ask for receive offloads", "interface", device, "error", err)
		return
	}
	off := disturbing(active, at)
	if len(off) == 0 {
		return
	}
	names := make([]string, 0, len(off))
	for _, o := range off {
		names = append(names, o.feature)
	}
	// Noted first: to switch on again what was on and would not go off does nothing.
	if err := noteOffloads(p.cfg.PinDir, device, names); err != nil {
		p.log.Warn("cannot note receive offloads: they will not be switched on again", "interface", device, "error", err)
	}
	if err := p.ns.setFeatures(device, names, false); err != nil {
		p.log.Warn("cannot switch receive offloads off", "interface", device, "features", names, "error", err)
		return
	}
	p.log.Info("switched receive offloads off", "interface", device, "features", names)
}

// frameAlarm tells of what is still on, or on again, on any device that receives the
// frames of one.
func (p *Plane) frameAlarm(devices devices, dev netlink.Link) string {
	var alarms []string
	on := placed(devices, dev)
	for _, name := range slices.Sorted(maps.Keys(on)) {
		active, err := p.ns.activeFeatures(name)
		if err != nil {
			continue // a device that cannot say has none of them
		}
		index := devices.named(name).Attrs().Index
		if alarm := offloadAlarm(name, disturbed(active, on[name], p.driver(index, name))); alarm != "" {
			alarms = append(alarms, alarm)
		}
	}
	return strings.Join(alarms, "; ")
}

// noteOffloads adds features to those that were noted of a device.
func noteOffloads(dir, device string, features []string) error {
	pin := offloadPin(dir, device)
	had, err := os.Readlink(pin)
	if err == nil {
		features = slices.Concat(strings.Split(had, ","), features)
		if err := os.Remove(pin); err != nil {
			return fmt.Errorf("replace note of offloads: %w", err)
		}
	}
	slices.Sort(features)
	if err := os.Symlink(strings.Join(slices.Compact(features), ","), pin); err != nil {
		return fmt.Errorf("note offloads: %w", err)
	}
	return nil
}

// restoreOffloads switches on what was switched off, and forgets the note. In the
// network namespace of the calling thread.
func restoreOffloads(pin string) error {
	noted, err := os.Readlink(pin)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read note of offloads: %w", err)
	}
	device := strings.TrimPrefix(filepath.Base(pin), offloadPrefix)
	ns, err := openNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := ns.switchOn(device, strings.Split(noted, ",")); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("switch offloads of %s on again, run ethtool -K: %w", device, err)
	}
	return os.Remove(pin)
}

// The kernel takes a program off a moment after its last pin is gone, and some
// drivers change nothing before.
const (
	switchTries = 10
	switchPause = 20 * time.Millisecond
)

func (n *namespace) switchOn(device string, features []string) error {
	for range switchTries {
		if err := n.setFeatures(device, features, true); err != nil {
			return err
		}
		active, err := n.activeFeatures(device)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(features, func(name string) bool { return !active[name] }) {
			break
		}
		time.Sleep(switchPause)
	}
	return nil // what is still off is wanted on, and the kernel remembers that
}

// Commands of SIOCETHTOOL and the string set of feature names (linux/ethtool.h).
const (
	ethtoolGetStrings  = 0x1b
	ethtoolGetSetInfo  = 0x37
	ethtoolGetFeatures = 0x3a
	ethtoolSetFeatures = 0x3b
	featureNames       = 4
	featureNameLength  = 32
	maxFeatures        = 1024 // today 64
)

// ethtoolRequest is struct ifreq with ifr_data.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

func (n *namespace) ethtool(device string, words []uint32) error {
	request := ethtoolRequest{data: unsafe.Pointer(&words[0])}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(n.ioctl), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); e != 0 {
		return fmt.Errorf("ethtool request %#x of %s: %w", words[0], device, e)
	}
	return nil
}

// featureBits learns the numbers of the features' names. They are the kernel's, so
// any device tells them.
func (n *namespace) featureBits(device string) (map[string]int, error) {
	if n.features != nil {
		return n.features, nil
	}
	info := []uint32{ethtoolGetSetInfo, 0, 1 << featureNames, 0, 0} // command, -, mask of 64 bits, answer
	if err := n.ethtool(device, info); err != nil {
		return nil, err
	}
	count := info[4]
	if count == 0 || count > maxFeatures {
		return nil, fmt.Errorf("ethtool: %d features of %s: want 1 to %d", count, device, maxFeatures)
	}
	const head, perName = 3, featureNameLength / 4
	words := make([]uint32, head+count*perName)
	words[0], words[1], words[2] = ethtoolGetStrings, featureNames, count
	if err := n.ethtool(device, words); err != nil {
		return nil, err
	}
	bits := make(map[string]int, count)
	for i := range int(min(count, words[2])) {
		name := (*[featureNameLength]byte)(unsafe.Pointer(&words[head+i*perName]))
		bits[unix.ByteSliceToString(name[:])] = i
	}
	n.features = bits
	return bits, nil
}

// activeFeatures tells which features a device has switched on.
func (n *namespace) activeFeatures(device string) (map[string]bool, error) {
	bits, err := n.featureBits(device)
	if err != nil {
		return nil, err
	}
	const head, perBlock, active = 2, 4, 2 // available, requested, active, never changed
	blocks := (len(bits) + 31) / 32
	words := make([]uint32, head+blocks*perBlock)
	words[0], words[1] = ethtoolGetFeatures, uint32(blocks)
	if err := n.ethtool(device, words); err != nil {
		return nil, err
	}
	out := make(map[string]bool)
	for name, i := range bits {
		if words[head+i/32*perBlock+active]>>(i%32)&1 != 0 {
			out[name] = true
		}
	}
	return out, nil
}

// setFeatures switches features of a device on or off. Those that the kernel or
// the device does not let change are left as they are, without an error.
func (n *namespace) setFeatures(device string, names []string, on bool) error {
	bits, err := n.featureBits(device)
	if err != nil {
		return err
	}
	const head, perBlock = 2, 2 // valid, requested
	blocks := (len(bits) + 31) / 32
	words := make([]uint32, head+blocks*perBlock)
	words[0], words[1] = ethtoolSetFeatures, uint32(blocks)
	for _, name := range names {
		i, known := bits[name]
		if !known {
			continue
		}
		words[head+i/32*perBlock] |= 1 << (i % 32)
		if on {
			words[head+i/32*perBlock+1] |= 1 << (i % 32)
		}
	}
	return n.ethtool(device, words)
}
