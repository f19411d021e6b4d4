package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// errDiskBack ends a process whose raft is off because of a disk that is well
// again: only a new process can take part.
var errDiskBack = errors.New("consensus was off because of the disk, which works again: this process ends so that the service manager starts a new one")

const (
	diskEvery = 10 * time.Second // between two probes: nothing is in a hurry, others lead
	diskSlow  = 2 * time.Second  // a probe that takes longer is no sign of health: raft parks after 3 s
	diskGood  = 3                // probes in a row that say that it is no flicker
	diskWary  = 60               // and in the hour after this node ended for that reason: probes do not see every fault
	diskSoon  = time.Hour
	diskProbe = 4 << 20 // bytes of a probe: what a full disk does not have, and the store soon wants
)

// fileDiskBack holds when this node last ended because its disk worked again.
const fileDiskBack = "disk-back"

// awaitDisk probes the disk until want probes in a row were well; false: ctx
// ended first. A probe may hang for as long as the disk does.
func awaitDisk(ctx context.Context, want int, probe func() error, tell func(string)) bool {
	for good := 0; pause(ctx, diskEvery); {
		began := time.Now()
		err := probe()
		took := time.Since(began)
		if err == nil && took > diskSlow {
			err = fmt.Errorf("writing to it took %v", took.Round(time.Millisecond))
		}
		if err != nil {
			good = 0
			tell(err.Error())
			continue
		}
		if good++; good == want {
			return true
		}
	}
	return false
}

// probeDisk writes to a folder as the store does, down to the disk.
func probeDisk(dir string) (err error) {
	path := filepath.Join(dir, "probe.tmp")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	_, err = f.Write(make([]byte, diskProbe))
	return errors.Join(err, f.Sync(), f.Close())
}

// sitOut is what a node does whose raft went off: it says so, goes on forwarding,
// and where the disk was the cause and works again it ends in order, routes first,
// for a new process to take part. A service manager that ends it at once, or
// none, would find the pins as they are.
func (m *member) sitOut(ctx context.Context, why string, disk bool, probe func() error) {
	m.park(why)
	if !disk {
		return
	}
	path, want := filepath.Join(m.node.cfg.DataDir, fileDiskBack), diskGood
	if b, err := os.ReadFile(path); err == nil {
		if last, err := time.Parse(time.RFC3339, string(b)); err == nil && time.Since(last).Abs() < diskSoon {
			want = diskWary
		}
	}
	tell := func(now string) { m.log.Warn("the disk is not well yet", "parked", why, "probe", now) }
	if !awaitDisk(ctx, want, probe, tell) {
		return
	}
	m.log.Warn("the disk works again: ending for a new process", "parked", why)
	if err := os.WriteFile(path, []byte(time.Now().UTC().Format(time.RFC3339)), 0o600); err != nil {
		m.log.Warn("remember when the disk was well again", "error", err.Error())
	}
	close(m.diskBack)
}

// wayBack says what a node waits for whose raft is off.
func wayBack(disk bool) string {
	if disk {
		return "mend the disk, and the daemon ends by itself for the service manager to start it anew"
	}
	return "restart the daemon"
}
