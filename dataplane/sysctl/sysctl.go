// Package sysctl sets, verifies and restores the kernel settings that
// forwarding through a data interface needs. It knows nothing of the data
// plane: names in, values out, by the files below /proc/sys/net.
//
// Why each is needed:
//
//   - forwarding: the kernel's FIB answers the XDP program only on interfaces
//     that forward, and it takes over packets whose next hop is not resolved yet.
//   - accept_local: such a packet of the return path has the VIP, an address of
//     this host, as its source; without it the kernel drops it as a martian
//     without a counter.
//   - rp_filter 0 or 2: the reverse path of a client leads outside, whichever
//     arm its packet came in by.
//   - send_redirects: on a shared segment the kernel would teach a server a way
//     around the cluster.
//   - arp_ignore, arp_announce: the VIP lies on lo of every node; none may answer
//     for it, or use it as a source of ARP, where a node's subnet contains it. The
//     kernel takes the larger of "all" and the interface's own, and "all" is set,
//     too: a further interface in the same segment (management, an unused port)
//     would answer for VIPs and gateways, and its answer sends packets to an
//     interface without the program. IPv6 needs nothing: the kernel answers
//     solicitations only for addresses of the interface they come in by.
//
// What IPv6 needs, and why, stands at [IPv6], what connections need that end on this
// host, at [Connections].
package sysctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Root is where the kernel shows its settings. A process in a network
// namespace sees the namespace's own below net.
const Root = "/proc/sys"

// Every stands in a key for each interface there is, "all" and "default" too.
const Every = "*"

// Setting is one wanted value.
type Setting struct {
	Key   string   // path below Root, "net/ipv4/conf/eth0/forwarding"; may hold Every
	Value string   // to be written
	Also  []string // other values that are as good and are left alone
	// Spreads: the kernel writes what is written to "all" to every interface.
	Spreads bool
}

// Wanted lists the settings for the given data interfaces, IPv4. "all" stands
// beside them because the kernel combines both.
func Wanted(interfaces []string) []Setting {
	var out []Setting
	conf := func(name, key, value string, also ...string) {
		out = append(out, Setting{Key: "net/ipv4/conf/" + name + "/" + key, Value: value, Also: also})
	}
	// rp_filter and send_redirects: the kernel takes the larger (or either) of
	// "all" and the interface's own.
	conf("all", "rp_filter", "0", "2")
	conf("all", "send_redirects", "0")
	conf("all", "arp_ignore", "1", "2")
	conf("all", "arp_announce", "2")
	for _, name := range interfaces {
		conf(name, "forwarding", "1")
		conf(name, "accept_local", "1")
		conf(name, "rp_filter", "0", "2")
		conf(name, "send_redirects", "0")
		conf(name, "arp_ignore", "1", "2")
		conf(name, "arp_announce", "2")
	}
	return out
}

// Connections is for a host where clients' TCP connections to a VIP end. A router
// that cannot forward a packet of ours says so to the VIP, and its message (ICMP "too
// big") follows another path than the connection: it may reach another node, and the
// connection would hang for ever. With probing the kernel sends smaller segments
// (from 1,024 bytes on) when the same one is lost four times, some 3 s, and larger
// ones later. RFC 4821.
func Connections() []Setting {
	return []Setting{{Key: "net/ipv4/tcp_mtu_probing", Value: "1", Also: []string{"2"}}} // for IPv6, too
}

// Keeper holds settings at their wanted values. Not safe for concurrent use.
type Keeper struct {
	root   string
	saved  string // file of the values found first, for Restore
	wanted []Setting
	held   map[string]bool    // keys that the last Mend found or left at the wanted value
	lost   map[string]SetBack // by key; those of settings that the last Mend looked at
}

// SetBack is a key that something else on this host keeps changing.
type SetBack struct {
	Key   string // with dots, as sysctl(8) writes it
	Times int    // how often Mend has found it changed
	Last  time.Time
}

// New does no I/O. saved is the file that remembers the original values over
// restarts; it is made by the first Mend.
func New(root, saved string, wanted []Setting) *Keeper {
	return &Keeper{root: root, saved: saved, wanted: wanted, held: make(map[string]bool), lost: make(map[string]SetBack)}
}

// Contested lists, by key, what was changed after this Keeper had seen it right. A
// key of an interface that was made anew starts with the kernel's default and counts,
// too.
func (k *Keeper) Contested() []SetBack {
	var out []SetBack
	for _, key := range slices.Sorted(maps.Keys(k.lost)) {
		out = append(out, k.lost[key])
	}
	return out
}

// Mend writes every setting that is not as wanted, those of New first and then
// more, in order, and returns the keys it changed. Whatever can be set is set; the
// error names all that cannot. Level-triggered: call it again and again.
//
// more is for what is not known when the Keeper is made: [IPv6], as soon as the
// cluster has IPv6 addresses. What was set once stays so until Restore.
func (k *Keeper) Mend(more ...Setting) (changed []string, err error) {
	var errs []error
	var wrong []Setting
	found := make(map[string]string)
	held, lost := make(map[string]bool), make(map[string]SetBack)
	for _, s := range k.each(slices.Concat(k.wanted, more)) {
		if l, ok := k.lost[s.Key]; ok {
			lost[s.Key] = l
		}
		now, err := k.read(s.Key)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if now == s.Value || slices.Contains(s.Also, now) {
			held[s.Key] = true
			continue
		}
		if k.held[s.Key] {
			lost[s.Key] = SetBack{Key: name(s.Key), Times: lost[s.Key].Times + 1, Last: time.Now()}
		}
		found[s.Key] = now
		wrong = append(wrong, s)
		if s.Spreads {
			for _, other := range k.siblings(s.Key) {
				if v, err := k.read(other); err == nil { // gone in between: nothing to restore
					found[other] = v
				}
			}
		}
	}
	if len(wrong) > 0 {
		if err := k.save(found); err != nil {
			errs = append(errs, err)
		}
	}
	for _, s := range wrong {
		if err := os.WriteFile(filepath.Join(k.root, s.Key), []byte(s.Value), 0); err != nil {
			errs = append(errs, fmt.Errorf("set %s to %s: %w", name(s.Key), s.Value, err))
			continue
		}
		held[s.Key] = true
		changed = append(changed, s.Key)
	}
	k.held, k.lost = held, lost
	return changed, errors.Join(errs...)
}

// each puts the interfaces there are in the place of Every.
func (k *Keeper) each(settings []Setting) []Setting {
	var out []Setting
	for _, s := range settings {
		if !strings.Contains(s.Key, "/"+Every+"/") {
			out = append(out, s)
			continue
		}
		for _, key := range k.siblings(s.Key) {
			s.Key = key
			out = append(out, s)
		}
	}
	return out
}

// siblings are the same setting of every interface.
func (k *Keeper) siblings(key string) []string {
	dir, setting := filepath.Split(key)
	dir = filepath.Dir(filepath.Clean(dir))
	entries, err := os.ReadDir(filepath.Join(k.root, dir))
	if err != nil {
		return []string{key} // reading it names the cause
	}
	var out []string
	for _, e := range entries {
		out = append(out, filepath.Join(dir, e.Name(), setting))
	}
	return out
}

// Restore puts back what Mend changed since the saved file was made, and
// removes that file. Interfaces that are gone are no error.
func (k *Keeper) Restore() error {
	before, err := k.load()
	if err != nil {
		return err
	}
	var errs []error
	for _, key := range restoreOrder(before) {
		value := before[key]
		err := os.WriteFile(filepath.Join(k.root, key), []byte(value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("restore %s to %s: %w", name(key), value, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(k.saved); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget the restored settings: %w", err)
	}
	return nil
}

// restoreOrder puts "all" first: it may write the interfaces, whose own values
// come after it.
func restoreOrder(before map[string]string) []string {
	return slices.SortedFunc(maps.Keys(before), func(a, b string) int {
		if x, y := strings.Contains(a, "/all/"), strings.Contains(b, "/all/"); x != y {
			if x {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
}

// name is the key as sysctl(8) writes it: dots between the parts, and slashes for the
// dots in an interface's name.
func name(key string) string { return strings.NewReplacer("/", ".", ".", "/").Replace(key) }

func (k *Keeper) read(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join(k.root, key))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name(key), err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (k *Keeper) load() (map[string]string, error) {
	out := make(map[string]string)
	b, err := os.ReadFile(k.saved)
	if errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the saved settings: %w", err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		// Kept for a person; what is changed from now on is saved anew.
		aside := k.saved + ".damaged"
		return nil, errors.Join(fmt.Errorf("%s is damaged (%w) and set aside as %s: 'vpnlb plane detach' cannot put back the values from before", k.saved, err, aside), os.Rename(k.saved, aside))
	}
	return out, nil
}

// save adds values found now; the first one found is the original.
func (k *Keeper) save(found map[string]string) error {
	before, err := k.load()
	if err != nil {
		return err
	}
	for key, value := range found {
		if _, ok := before[key]; !ok {
			before[key] = value
		}
	}
	b, err := json.MarshalIndent(before, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the saved settings: %w", err)
	}
	tmp := k.saved + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("save the original settings: %w", err)
	}
	if err := os.Rename(tmp, k.saved); err != nil {
		return fmt.Errorf("save the original settings: %w", err)
	}
	return nil
}
