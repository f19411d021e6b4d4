package sstppeer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
)

// DialConfig is one client: sstpc, dialled again whenever it ends, as Windows
// does for Always On connections.
type DialConfig struct {
	Dir      string     `json:"dir"`  // its own, for logs and small files
	PPPD     []string   `json:"pppd"` // command that is RunPPPD; the state file and sstpc's arguments are appended
	Host     string     `json:"host"` // name in the server's certificate
	Addr     netip.Addr `json:"addr"` // that the name means
	CAFile   string     `json:"ca_file"`
	User     string     `json:"user"`
	Password string     `json:"password"`
	// Redial is the pause between two calls.
	Redial  time.Duration `json:"redial"`
	Control string        `json:"control"`
}

// DialStats is a client's answer to /stats.
type DialStats struct {
	User  string    `json:"user"`
	Now   time.Time `json:"now"`
	Dials int64     `json:"dials"`
	Link  LinkState `json:"link"` // zero: down
	Up    bool      `json:"up"`
	Ends  []DialEnd `json:"ends"` // the latest, oldest first
}

// DialEnd is the end of one call.
type DialEnd struct {
	At   time.Time `json:"at"`
	Link LinkState `json:"link"` // what it had; zero: it never was up
	Said string    `json:"said"` // the end of what sstpc and pppd wrote
}

const (
	pppdPath   = "/usr/sbin/pppd"
	hostsPath  = "/etc/hosts"
	sstpcLog   = "sstpc.log"
	maxEnds    = 20
	maxSaid    = 600 // bytes
	hangUpTime = 3 * time.Second
	statePoll  = 20 * time.Millisecond
)

// dialer is one client at work.
type dialer struct {
	cfg   DialConfig
	mu    sync.Mutex
	dials int64
	last  LinkState // of the call under way, once it was up
	ends  []DialEnd
}

// RunDialer keeps a call up until ctx ends.
func RunDialer(ctx context.Context, cfg DialConfig) error {
	d := &dialer{cfg: cfg}
	if err := d.prepare(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		mux := http.NewServeMux()
		mux.HandleFunc("GET "+PathStats, func(w http.ResponseWriter, _ *http.Request) { peer.Reply(w, d.stats()) })
		cancel(peer.ServeControl(ctx, cfg.Control, mux))
	})
	wg.Go(func() { cancel(d.onOwnThread(ctx)) })
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (d *dialer) path(name string) string { return filepath.Join(d.cfg.Dir, name) }

// prepare writes what is mounted over the host's files: sstpc knows neither
// another pppd nor another resolver.
func (d *dialer) prepare() error {
	if err := os.MkdirAll(d.cfg.Dir, 0o755); err != nil {
		return fmt.Errorf("make client folder: %w", err)
	}
	if err := os.MkdirAll("/var/run/sstpc", 0o755); err != nil { // its own folder, which its package leaves to boot scripts
		return fmt.Errorf("make sstpc folder: %w", err)
	}
	script := "#!/bin/sh\nexec"
	for _, a := range append(d.cfg.PPPD, d.path("link.json")) {
		script += " '" + a + "'"
	}
	script += ` "$@" 2>>'` + d.path(sstpcLog) + "'\n"
	if err := os.WriteFile(d.path("pppd"), []byte(script), 0o755); err != nil {
		return fmt.Errorf("write pppd script: %w", err)
	}
	hosts := fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", d.cfg.Addr, d.cfg.Host)
	if err := os.WriteFile(d.path("hosts"), []byte(hosts), 0o644); err != nil {
		return fmt.Errorf("write hosts: %w", err)
	}
	return nil
}

// onOwnThread dials from a thread with mounts of its own; the thread ends with
// the goroutine, and its children with the thread.
func (d *dialer) onOwnThread(ctx context.Context) error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for from, to := range map[string]string{d.path("pppd"): pppdPath, d.path("hosts"): hostsPath} {
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount over %s: %w", to, err)
		}
	}
	for ctx.Err() == nil {
		if err := d.dial(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(d.cfg.Redial):
		}
	}
	return nil
}

// dial makes one call and waits for its end. The error is for what is wrong
// here, not with the call.
func (d *dialer) dial(ctx context.Context) error {
	log, err := os.Create(d.path(sstpcLog))
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	defer log.Close()
	if err := os.Remove(d.path("link.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old link state: %w", err)
	}
	cmd := exec.CommandContext(ctx, "sstpc", "--log-stderr", "--log-level", "4", "--tls-ext", "--ca-cert", d.cfg.CAFile,
		"--priv-user", "root", "--priv-group", "root", "--user", d.cfg.User, "--password", d.cfg.Password, d.cfg.Host, "noauth")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return d.hangUp(cmd.Process) }
	cmd.WaitDelay = hangUpTime
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start sstpc: %w", err)
	}
	d.mu.Lock()
	d.dials++
	d.last = LinkState{}
	d.mu.Unlock()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { d.watch(done) })
	cmd.Wait() // the log says more than its status
	close(done)
	wg.Wait()
	os.Remove(d.path("link.json")) // if pppd had no time to
	said, err := os.ReadFile(d.path(sstpcLog))
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ends = append(d.ends, DialEnd{At: time.Now(), Link: d.last, Said: plain(said[max(0, len(said)-maxSaid):])})
	d.ends = d.ends[max(0, len(d.ends)-maxEnds):]
	return nil
}

// plain takes away what sstpc writes besides text.
func plain(b []byte) string { return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", "")) }

// hangUp ends the call gently, which sstpc does when its pppd has ended; a call
// that is not up yet has nothing to say goodbye to.
func (d *dialer) hangUp(sstpc *os.Process) error {
	if st, up := d.link(); up && st.PID > 0 {
		return syscall.Kill(st.PID, syscall.SIGTERM)
	}
	return sstpc.Signal(syscall.SIGTERM)
}

// watch waits for the link to come up, so that its end can tell what it was.
func (d *dialer) watch(done <-chan struct{}) {
	t := time.NewTicker(statePoll)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
			if st, ok := d.link(); ok {
				d.mu.Lock()
				d.last = st
				d.mu.Unlock()
			}
		}
	}
}

// link reads the state that pppd wrote; false: it is not up.
func (d *dialer) link() (st LinkState, up bool) {
	b, err := os.ReadFile(d.path("link.json"))
	if err != nil || json.Unmarshal(b, &st) != nil {
		return LinkState{}, false
	}
	return st, true
}

func (d *dialer) stats() DialStats {
	st, up := d.link()
	d.mu.Lock()
	defer d.mu.Unlock()
	return DialStats{User: d.cfg.User, Now: time.Now(), Dials: d.dials, Link: st, Up: up, Ends: append([]DialEnd{}, d.ends...)}
}

// Said is what the last call that ended wrote last, in one line.
func (s DialStats) Said() string {
	if len(s.Ends) == 0 {
		return fmt.Sprintf("no call of %s has ended, %d dials", s.User, s.Dials)
	}
	rows := strings.Split(s.Ends[len(s.Ends)-1].Said, "\n")
	return fmt.Sprintf("%d dials of %s, the last one ended with %q", s.Dials, s.User, strings.Join(rows[max(0, len(rows)-3):], " / "))
}
