package node

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/node/config"
)

// smallDisk is a file system of 2 MB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("mounting needs root: ", err)
		}
		t.Skip("mounting needs root: ", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// A daemon that starts on a disk that takes nothing waits and says so; it comes up
// when the disk is well, in the same process.
func TestStartOnFullOrReadOnlyDisk(t *testing.T) {
	for _, how := range []string{"full", "read-only"} {
		t.Run(how, func(t *testing.T) {
			dir := smallDisk(t)
			filler := filepath.Join(dir, "filler")
			switch how {
			case "full":
				f, err := os.Create(filler)
				if err != nil {
					t.Fatal(err)
				}
				for b := make([]byte, 4096); err == nil; _, err = f.Write(b) {
				}
				f.Close()
			case "read-only":
				if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
					t.Fatal(err)
				}
			}
			n, err := New(config.Config{
				Name: "n1", DataDir: dir, AdminSocket: filepath.Join(t.TempDir(), "admin.sock"),
				Cluster:   config.Cluster{Address: netip.MustParseAddrPort("127.0.0.1:17950"), Gossip: netip.MustParseAddrPort("127.0.0.1:17946"), Heartbeat: config.DefaultHeartbeat},
				Dataplane: config.Dataplane{PinDir: filepath.Join(dir, "bpf"), Outside: "vpnlb-none0", Inside: "vpnlb-none0", Attach: config.AttachAuto, MaxClients: 1 << 16},
			}, Deps{Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- n.Run(ctx) }()
			within := func(what string, ok func() bool) {
				t.Helper()
				deadline, tick := time.After(30*time.Second), time.NewTicker(20*time.Millisecond)
				defer tick.Stop()
				for !ok() {
					select {
					case err := <-ended:
						t.Fatalf("%s: the process ended: %v", what, err)
					case <-deadline:
						_, why := n.stageNow()
						t.Fatalf("%s: not within 30 s: %s", what, why)
					case <-tick.C:
					}
				}
			}
			within("say why it waits", func() bool { _, why := n.stageNow(); return why != "" && n.ids.Load() == nil })
			os.Remove(filler)
			if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=2m"); err != nil {
				t.Fatal(err)
			}
			within("come up", func() bool { return n.ids.Load() != nil })
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("ended with %v", err)
			}
		})
	}
}
