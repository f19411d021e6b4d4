package dataplane

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Pins that somebody removes under a running daemon come back: forwarding must not
// end with the process.
func TestRemovedPinsComeBack(t *testing.T) {
	p, dir := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), entries(10, 1))
	before, err := pinsIn(dir)
	if err != nil || len(before) < 10 {
		t.Fatalf("pins %v, %v", before, err)
	}
	alarm := func() string { return p.Status().Interfaces[0].Alarm }
	runPlane(t, p)
	eventually(t, "no alarm", func() bool { return alarm() == "" })
	for _, name := range []string{"one", "all", "filesystem"} {
		switch name {
		case "one":
			err = os.Remove(p.mapPin("affinity4"))
		case "all":
			err = Detach(p.cfg)
		case "filesystem": // until somebody mounts one
			err = unix.Unmount(filepath.Dir(dir), unix.MNT_DETACH)
			eventually(t, "the alarm names the fix", func() bool { return strings.Contains(alarm(), "mount -t bpf") })
			if err := unix.Mount("bpf", filepath.Dir(dir), "bpf", 0, ""); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, name+": the pins are back", func() bool {
			now, err := pinsIn(dir)
			return err == nil && maps.Equal(before, now)
		})
		eventually(t, name+": alarm", func() bool { return strings.Contains(alarm(), "look for what removes them") })
	}
	if n := allCounts(t, p).Events.PinsMended; int(n) < 1+2*len(before) {
		t.Errorf("%d pins counted", n)
	}
	p.status.Lock()
	if text := p.mendPins(time.Now().Add(pinAlarmTime)); text != "" {
		t.Errorf("the alarm stays: %s", text)
	}
	p.status.Unlock()
	// They are of the objects in use.
	program := p.Status().Interfaces[0].ProgramID
	q := newPlane(t, dir, "leg")
	if found := attachPlane(t, q); !found.Found || found.Entries != 10 || len(found.TakenOver) != 1 {
		t.Errorf("found %+v", found)
	}
	if got := q.Status().Interfaces[0].ProgramID; got != program {
		t.Errorf("program %d is pinned, %d runs", got, program)
	}
}
