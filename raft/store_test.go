package raft

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// refused runs a node whose store is not in order, and gives what Run says.
func (c *cluster) refused(name string) error {
	c.t.Helper()
	n := c.node(name)
	n.run()
	select {
	case err := <-n.ended:
		n.ended <- nil
		delete(c.nodes, name)
		return err
	case <-n.Started():
		c.t.Fatal("the store was taken")
		return nil
	}
}

// putSnapshot writes one more snapshot into a node's store.
func (c *cluster) putSnapshot(n *node, index uint64, data []byte) {
	c.t.Helper()
	snaps, err := hraft.NewFileSnapshotStoreWithLogger(filepath.Join(c.dir, n.name), keepShots, newLogger(n.log))
	if err != nil {
		c.t.Fatal(err)
	}
	_, trans := hraft.NewInmemTransport("")
	defer trans.Close()
	conf := hraft.Configuration{Servers: []hraft.Server{{ID: hraft.ServerID(n.id.String()), Address: hraft.ServerAddress(n.addr)}}}
	time.Sleep(time.Millisecond) // its name is its time
	sink, err := snaps.Create(hraft.SnapshotVersionMax, index, 2, conf, 1, trans)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := sink.Write(data); err != nil {
		c.t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		c.t.Fatal(err)
	}
}

// entries are the names in a node's folder.
func (c *cluster) entries(name string) (out []string) {
	c.t.Helper()
	list, err := os.ReadDir(filepath.Join(c.dir, name))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// An older version must not throw away what it cannot read: neither where all
// snapshots are newer nor where only the last one is.
func TestNewerSnapshotIsNoLoss(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a")
		n := c.leader()
		c.bump(n)
		if err := n.Snapshot(context.Background()); err != nil {
			t.Fatal(err)
		}
		last := n.Status().LastIndex
		n.stop()
		for range keepShots { // the older one of ours goes with the second
			c.putSnapshot(n, last, []byte("vpnlbst\xfe and what only the next version can read"))
			before := c.entries("a")
			err := c.refused("a")
			if q := (*QuarantineError)(nil); !errors.Is(err, state.ErrUnknown) || errors.As(err, &q) {
				t.Errorf("Run: %v", err)
			}
			if after := c.entries("a"); len(after) != len(before) {
				t.Errorf("the folder had %q, has %q", before, after)
			}
		}
		// The version that wrote it finds everything.
		snaps := filepath.Join(c.dir, "a", snapshotsDir)
		list, _ := os.ReadDir(snaps)
		for _, e := range list {
			os.RemoveAll(filepath.Join(snaps, e.Name()))
		}
		n = c.start("a")
		if got := budget(n); got != 1 {
			t.Errorf("budget %d after the way back", got)
		}
	})
}

// What a quarantine that was cut short leaves behind, or a lost file, must not
// pass for a store: this ID has voted.
func TestHalfAStoreIsLost(t *testing.T) {
	for _, lost := range []string{storeName, snapshotsDir} {
		t.Run(lost, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.tune = func(cfg *Config) { cfg.TrailingBytes = 1 }
				c.boot("a")
				n := c.leader()
				for range 4 * minTrailing {
					if _, err := n.Propose(context.Background(), state.Tick{}); err != nil {
						t.Fatal(err)
					}
				}
				if err := n.Snapshot(context.Background()); err != nil {
					t.Fatal(err)
				}
				if first, _ := n.guard.Load().FirstIndex(); first < 2 {
					t.Fatalf("the log begins at %d", first)
				}
				n.stop()
				if err := os.RemoveAll(filepath.Join(c.dir, "a", lost)); err != nil {
					t.Fatal(err)
				}
				err := c.refused("a")
				if q := (*QuarantineError)(nil); !errors.As(err, &q) {
					t.Errorf("Run: %v", err)
				}
				for _, name := range c.entries("a") {
					if name == storeName || name == snapshotsDir {
						t.Errorf("%s is still in place", name)
					}
				}
			})
		})
	}
}

// What stays behind a snapshot is bounded by bytes, whatever the entries weigh
// and whatever came before them.
func TestTrailingBytes(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.tune = func(cfg *Config) { cfg.TrailingBytes = 1 << 20 }
		c.boot("a")
		n := c.leader()
		for range 3 * minTrailing { // small ones, which would spoil a mean
			if _, err := n.Propose(context.Background(), state.Tick{}); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 * minTrailing {
			keys := make([]state.Key, 2000)
			for i := range keys {
				keys[i] = state.Key{Client: state.Client{0: 0x20, 14: byte(i >> 8), 15: byte(i)}, Class: state.ClassIKE}
			}
			if _, err := n.Propose(context.Background(), state.Forget{Keys: keys}); err != nil {
				t.Fatal(err)
			}
		}
		full := n.Status().LogBytes
		if err := n.Snapshot(context.Background()); err != nil {
			t.Fatal(err)
		}
		first, _ := n.guard.Load().FirstIndex()
		st := n.Status()
		t.Logf("%d of %d bytes stay, in %d entries", st.LogBytes, full, st.LastIndex-first+1)
		if st.LogBytes > 1<<20+1<<15 || st.LogBytes < 1<<19 {
			t.Errorf("%d of %d bytes stay, in %d entries", st.LogBytes, full, st.LastIndex-first+1)
		}
	})
}
