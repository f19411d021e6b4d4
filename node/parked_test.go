package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestSitOut(t *testing.T) {
	broken := errors.New("input/output error")
	slow := errors.New("slow") // a probe that succeeds, late
	well := make([]error, 3)
	for _, c := range []struct {
		name   string
		disk   bool
		last   time.Duration // since this node ended so last; 0: never
		probes []error
		want   time.Duration // 0: it stays parked
	}{
		{"the disk is well again", true, 0, well, 3 * diskEvery},
		{"it was long ago, too", true, 2 * diskSoon, well, 3 * diskEvery},
		{"it was a moment ago, too", true, diskSoon / 2, make([]error, diskWary), diskWary * diskEvery},
		{"it was, and that was too early", true, diskSoon / 2, append(append(make([]error, diskWary-1), broken), well...), 0},
		{"it flickers", true, 0, append([]error{broken, nil, nil, broken}, well...), 7 * diskEvery},
		{"it is slow for a while", true, 0, append([]error{nil, nil, slow}, well...), 6*diskEvery + 2*diskSlow},
		{"it stays broken", true, 0, nil, 0},
		{"the disk was not the cause", false, 0, well, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				m := &member{node: &Node{log: slog.New(slog.DiscardHandler), notify: newNotifier("")}, log: slog.New(slog.DiscardHandler), diskBack: make(chan struct{})}
				m.node.cfg.DataDir = dir
				if c.last > 0 {
					text := time.Now().UTC().Add(-c.last).Format(time.RFC3339)
					if err := os.WriteFile(filepath.Join(dir, fileDiskBack), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				left := c.probes
				began := time.Now()
				go func() {
					defer close(ended)
					m.sitOut(ctx, "parked", c.disk, func() error {
						if len(left) == 0 {
							return broken
						}
						err := left[0]
						left = left[1:]
						if errors.Is(err, slow) {
							time.Sleep(2 * diskSlow)
							return nil
						}
						return err
					})
				}()
				select {
				case <-m.diskBack:
					if took := time.Since(began); took != c.want {
						t.Errorf("ended after %v, want %v", took, c.want)
					}
					if b, _ := os.ReadFile(filepath.Join(dir, fileDiskBack)); string(b) != time.Now().UTC().Format(time.RFC3339) {
						t.Errorf("it remembers %q", b)
					}
				case <-time.After(time.Hour):
					if c.want != 0 {
						t.Error("still parked after an hour")
					}
				}
				if stage, _ := m.node.stageNow(); stage != StageParked {
					t.Errorf("stage %s", stage)
				}
				cancel()
				<-ended
			})
		})
	}
}

func TestProbeDisk(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "probe.tmp"), []byte("of a probe that was cut short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := probeDisk(dir); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left behind", left)
	}
	if err := probeDisk(filepath.Join(dir, "gone")); err == nil {
		t.Error("a folder that is not there passes for a disk that works")
	}
	if _, err := os.Stat("/dev/full"); err == nil { // answers every write with ENOSPC
		if err := os.Symlink("/dev/full", filepath.Join(dir, "probe.tmp")); err != nil {
			t.Fatal(err)
		}
		if err := probeDisk(dir); err == nil {
			t.Error("a full disk passes for one that works")
		}
	}
}
