package lab

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/vpnlb/vpnlb/node/admin"
)

// pin is what the kernel calls something that a node has pinned: whatever is made
// anew gets another number.
type pin struct {
	id      uint32       // of the map or link
	program uint32       // that a link runs
	tag     string       // of that program's instructions
	target  string       // of a symbolic link
	kind    ebpf.MapType // of a map
}

// pins reads what a node has pinned, by name.
func (l *Lab) pins(node string) (map[string]pin, error) {
	dir := l.path(bpfDir, node)
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read pins of %s: %w", node, err)
	}
	out := map[string]pin{}
	for _, e := range list {
		path := dir + "/" + e.Name()
		var p pin
		switch {
		case e.Type()&os.ModeSymlink != 0:
			p.target, err = os.Readlink(path)
		case strings.HasPrefix(e.Name(), "link_"):
			p, err = pinnedLink(path)
		default:
			p, err = pinnedMap(path)
		}
		if err != nil {
			return nil, fmt.Errorf("read pin %s of %s: %w", e.Name(), node, err)
		}
		out[e.Name()] = p
	}
	return out, nil
}

func pinnedMap(path string) (p pin, err error) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return p, err
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return p, err
	}
	id, _ := info.ID()
	return pin{id: uint32(id), kind: info.Type}, nil
}

func pinnedLink(path string) (p pin, err error) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return p, err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return p, err
	}
	prog, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return p, fmt.Errorf("its program: %w", err)
	}
	defer prog.Close()
	about, err := prog.Info()
	if err != nil {
		return p, err
	}
	return pin{id: uint32(info.ID), program: uint32(info.Program), tag: about.Tag}, nil
}

// touched lists the pins that are others now, or gone, or new. A daemon that has
// caught up puts its own copy of the program on its links in one step: replaced
// allows that, for the same instructions.
func touched(before, now map[string]pin, replaced bool) (out []string) {
	names := slices.Sorted(maps.Keys(before))
	for _, n := range slices.Sorted(maps.Keys(now)) {
		if _, ok := before[n]; !ok {
			names = append(names, n)
		}
	}
	for _, n := range names {
		was, ok := before[n]
		is, still := now[n]
		if replaced {
			was.program, is.program = 0, 0
		}
		switch {
		case !ok:
			out = append(out, n+" is new")
		case !still:
			out = append(out, n+" is gone")
		case was != is:
			out = append(out, fmt.Sprintf("%s was %+v, is %+v", n, was, is))
		}
	}
	return out
}

// allPins are the pins of every member.
func (d *drill) allPins() (map[string]map[string]pin, error) {
	out := map[string]map[string]pin{}
	for _, n := range d.l.members() {
		p, err := d.l.pins(n)
		if err != nil {
			return nil, err
		}
		links := 0
		for _, x := range p {
			if x.program != 0 {
				links++
			}
		}
		if links == 0 {
			return nil, fmt.Errorf("%s has pinned no program", n)
		}
		out[n] = p
	}
	return out, nil
}

// untouched fails the drill if pins are not those of before.
func (d *drill) untouched(when string, before map[string]map[string]pin, replaced bool) error {
	now, err := d.allPins()
	if err != nil {
		return err
	}
	count, faults := 0, 0
	for n, was := range before {
		count += len(was)
		for _, t := range touched(was, now[n], replaced) {
			faults++
			d.failf("%s: pin of %s: %s", when, n, t)
		}
	}
	if faults == 0 {
		d.notef("%s: all %d pins are those of before", when, count)
	}
	return nil
}

// pinPoll is the time between two looks at all pins: they cost daemons that start
// their processor.
const pinPoll = 250 * time.Millisecond

// leaderless checks, until a leader is known, that daemons which have just
// started leave programs and maps alone: what is agreed they cannot know yet.
func (d *drill) leaderless(ctx context.Context, before map[string]map[string]pin) (leader string, err error) {
	looks := 0
	err = untilEvery(ctx, pinPoll, healBound, "a leader", func() (bool, error) {
		now, err := d.allPins() // before anybody is asked: a leader of after that excuses nothing
		if err != nil {
			return false, err
		}
		answered, known := false, false
		for _, n := range d.l.members() {
			var st admin.Status
			if admin.NewClient(d.l.socket(n)).Get(ctx, admin.PathStatus, &st) != nil {
				continue
			}
			answered = true
			known = known || st.Leader != ""
			if st.Role == "leader" {
				leader = n
			}
		}
		if known {
			return leader != "", nil
		}
		if answered {
			looks++
		}
		for n, was := range before {
			if t := touched(was, now[n], false); len(t) > 0 {
				return false, fmt.Errorf("without a leader %s touched its pins: %v", n, t)
			}
		}
		return false, nil
	})
	d.notef("looked at all pins %d times while daemons answered and knew no leader", looks)
	return leader, err
}
