package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// pinAlarmTime is how long it is told that pins had gone and were made again: nothing
// is wrong any more, but somebody should know what removes them.
const pinAlarmTime = 10 * time.Minute

// pinKeeper looks after the pins while the daemon runs. Without them forwarding would
// end with this process, which holds the last descriptors then: unnoticed until the
// next restart.
type pinKeeper struct {
	again time.Time // when pins were made again
}

// mendPins makes pins again that are gone and gives the alarm, "" = nothing to tell.
// The caller holds p.status.
func (p *Plane) mendPins(now time.Time) string {
	n, err := p.repin()
	if n > 0 {
		p.pins.again = now
		p.repinned.Add(uint64(n))
		p.log.Warn("pins were gone and were made again", "folder", p.cfg.PinDir, "pins", n)
	}
	switch {
	case err != nil:
		return fmt.Sprintf("forwarding would end with this process: %v", err)
	case !p.pins.again.IsZero() && now.Sub(p.pins.again) < pinAlarmTime:
		return fmt.Sprintf("pins in %s had gone and were made again: look for what removes them ('vpnlb plane detach' is for a node that was stopped)", p.cfg.PinDir)
	}
	return ""
}

// pinned is what has Pin and Unpin: a map or a link.
type pinned interface {
	Pin(string) error
	Unpin() error // forgets the path, which Pin would take for done
}

// repin makes the pins that are gone, and says how many there were.
func (p *Plane) repin() (n int, err error) {
	gone := make(map[string]pinned)
	look := func(path string, what pinned) {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			gone[path] = what
		}
	}
	for name, m := range p.coll.Maps {
		if !unpinned[name] && name[0] != '.' {
			look(p.mapPin(name), m)
		}
	}
	for _, a := range p.attachments {
		if a.link != nil {
			look(p.linkPin(a.name), a.link)
		}
	}
	if len(gone) == 0 {
		return 0, nil
	}
	if err := preparePinDir(p.cfg.PinDir); err != nil {
		return 0, err
	}
	var faults []error
	for path, what := range gone {
		if err := errors.Join(what.Unpin(), what.Pin(path)); err != nil {
			faults = append(faults, fmt.Errorf("pin %s again: %w", path, err))
		} else {
			n++
		}
	}
	return n, errors.Join(faults...)
}
