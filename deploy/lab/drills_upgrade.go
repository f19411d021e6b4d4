package lab

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vpnlb/vpnlb/node/admin"
)

const (
	stopLimit = 10 * time.Second // of a daemon that a service manager ends
	// startLimit is backLimit and the time for which the router leaves a neighbour
	// alone whose session ended: nothing is slept through here meanwhile.
	startLimit = backLimit + 5*time.Second
	filledWait = 10 * time.Second // from the announcement to maps that hold all that is agreed
)

// SetOther names another version of the binary, for the drill "upgrade".
func (l *Lab) SetOther(path string) error {
	if path == "" {
		l.st.Options.Other = ""
		return nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("other binary: %w", err)
	}
	if info, err := os.Stat(abs); err != nil {
		return fmt.Errorf("other binary: %w", err)
	} else if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("other binary %s: it is no program", abs)
	}
	l.st.Options.Other = abs
	return nil
}

// upgrade changes the binary of one node after the other, and back again. It is
// not accounted for packet by packet: counters go with their maps.
func (d *drill) upgrade(ctx context.Context) error {
	first, err := d.oneLayout()
	if err != nil {
		return err
	}
	before, err := d.recordsOn(ctx, d.l.members()[0])
	if err != nil {
		return err
	}
	if len(before) == 0 {
		return errNoClients
	}
	var other string
	for _, binary := range []string{d.l.st.Options.Other, d.l.st.Options.Binary} {
		for _, n := range d.l.members() {
			if err := d.replaceBinary(ctx, n, binary); err != nil {
				return err
			}
		}
		if other == "" {
			if other, err = d.oneLayout(); err != nil {
				return err
			}
		}
		if err := d.recordsKept(ctx, before); err != nil {
			return err
		}
		if err := d.unharmed(ctx); err != nil {
			return err
		}
	}
	last, err := d.oneLayout()
	if err != nil {
		return err
	}
	d.notef("layouts of the maps: %s, %s, %s", first, other, last)
	if last != first {
		d.failf("the first binary left maps of layout %s, found %s", first, last)
	}
	return nil
}

// replaceBinary ends a daemon as a service manager does and starts another
// binary in its place.
func (d *drill) replaceBinary(ctx context.Context, node, binary string) error {
	p, ok := d.l.st.Processes[node]
	if !ok || len(p.Args) == 0 {
		return fmt.Errorf("replace binary of %s: never started", node)
	}
	d.l.say("  %s: from %s to %s", node, p.Args[0], binary)
	start := time.Now()
	if err := p.end(ctx, node, syscall.SIGTERM, stopLimit); err != nil {
		return err
	}
	stopped := time.Now()
	d.within(node+" stopped", stopped.Sub(start), stopLimit)
	args := append([]string{binary}, p.Args[1:]...)
	if err := d.l.start(node, p.Role, p.Env, args...); err != nil {
		return err
	}
	if err := d.l.waitECMP(ctx, healBound); err != nil {
		return fmt.Errorf("%s with the binary %s: %w", node, binary, err)
	}
	d.within(node+" back in the ECMP set", time.Since(stopped), startLimit)
	d.converged(time.Since(start))
	return d.filled(ctx, node)
}

// filled waits until a node's kernel holds every record that is agreed, and no
// maps of another layout.
func (d *drill) filled(ctx context.Context, node string) error {
	var last string
	err := until(ctx, filledWait, node+"'s maps to be filled", func() (bool, error) {
		var st admin.Status
		if err := admin.NewClient(d.l.socket(node)).Get(ctx, admin.PathStatus, &st); err != nil {
			return false, nil
		}
		layouts, err := d.l.layouts(node)
		last = fmt.Sprintf("%d of %d records, layouts %v", st.PlaneEntries, st.Affinities, layouts)
		return len(layouts) == 1 && st.Affinities > 0 && st.PlaneEntries >= st.Affinities, err
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, last)
	}
	return nil
}

// layouts lists the versions that the names of a node's pinned maps end in.
func (l *Lab) layouts(node string) ([]string, error) {
	pins, err := os.ReadDir(l.path(bpfDir, node))
	if err != nil {
		return nil, fmt.Errorf("read pins of %s: %w", node, err)
	}
	seen := map[string]bool{}
	for _, p := range pins {
		if strings.HasPrefix(p.Name(), "link_") || strings.HasPrefix(p.Name(), "offloads_") {
			continue
		}
		i := strings.LastIndex(p.Name(), "_v")
		if i < 0 {
			return nil, fmt.Errorf("pin %s of %s names no version", p.Name(), node)
		}
		seen[p.Name()[i+1:]] = true
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// oneLayout is the layout of the maps of all members.
func (d *drill) oneLayout() (string, error) {
	var all []string
	for _, n := range d.l.members() {
		one, err := d.l.layouts(n)
		if err != nil {
			return "", err
		}
		if len(one) != 1 {
			return "", fmt.Errorf("%s has maps of the layouts %v, want one", n, one)
		}
		all = append(all, one...)
	}
	if all = slices.Compact(all); len(all) != 1 {
		return "", fmt.Errorf("members have maps of the layouts %v, want one", all)
	}
	return all[0], nil
}

// record names what a record says for good: who is whose client.
type record struct{ key, vip, class string }

// recordsOn reads the records that a member holds as agreed.
func (d *drill) recordsOn(ctx context.Context, node string) (map[record]string, error) {
	var list admin.Affinities
	if err := d.l.cli(ctx, cliBound, node, &list, "affinity", "list", "--limit", "0"); err != nil {
		return nil, err
	}
	out := map[record]string{}
	for _, r := range list.Records {
		out[record{r.Key, r.VIP, r.Class}] = r.Backend
	}
	return out, nil
}

// recordsKept checks that every member has every record still.
func (d *drill) recordsKept(ctx context.Context, before map[record]string) error {
	for _, n := range d.l.members() {
		now, err := d.recordsOn(ctx, n)
		if err != nil {
			return err
		}
		lost, moved := 0, 0
		for r, backend := range before {
			switch now[r] {
			case backend:
			case "":
				lost++
			default:
				moved++
			}
		}
		if lost+moved > 0 {
			d.failf("of %d records %s has lost %d, and %d name another server", len(before), n, lost, moved)
		} else {
			d.notef("%s has all %d records, and %d of later", n, len(before), len(now)-len(before))
		}
	}
	return nil
}
