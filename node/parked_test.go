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
	for _, c := range []struct {
		name   string
		disk   bool
		probes []error
		want   time.Duration // 0: it stays parked
	}{
		{"the disk is well again", true, []error{nil, nil, nil}, 3 * diskEvery},
		{"it flickers", true, []error{broken, nil, nil, broken, nil, nil, nil}, 7 * diskEvery},
		{"it is slow for a while", true, []error{nil, nil, slow, nil, nil, nil}, 6*diskEvery + 2*diskSlow},
		{"it stays broken", true, nil, 0},
		{"the disk was not the cause", false, []error{nil, nil, nil}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &member{node: &Node{log: slog.New(slog.DiscardHandler), notify: newNotifier("")}, log: slog.New(slog.DiscardHandler), diskBack: make(chan struct{})}
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
