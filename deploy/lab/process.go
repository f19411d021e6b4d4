package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pollInterval = 10 * time.Millisecond // of everything the lab waits for
	killBound    = 5 * time.Second       // from SIGKILL to gone
	stopBound    = 15 * time.Second      // from SIGTERM to SIGKILL
)

// proc is a process of the lab. PID and Start together name it for ever: a
// number that was given out again has another start.
type proc struct {
	Role  string   `json:"role"` // namespace it lives in; "": the host's
	PID   int      `json:"pid"`
	Start uint64   `json:"start"` // clock ticks after boot, /proc/<pid>/stat field 22
	Args  []string `json:"args"`
	Env   []string `json:"env"`
	Log   string   `json:"log"`
}

// start runs a command in the namespace of a role, output to a log file. The
// child lives on when this process ends.
func (l *Lab) start(name, role string, env []string, args ...string) error {
	p := proc{Role: role, Args: args, Env: env, Log: l.path("log", name+".log")}
	if err := p.spawn(l.st.Options.Name, l.ns(role)); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	l.st.Processes[name] = p
	return l.save()
}

// restart starts a process of the lab again as it was started before.
func (l *Lab) restart(name string) error {
	p, ok := l.st.Processes[name]
	if !ok {
		return fmt.Errorf("restart %s: never started", name)
	}
	return l.start(name, p.Role, p.Env, p.Args...)
}

func (p *proc) spawn(lab, ns string) error {
	if err := os.MkdirAll(filepath.Dir(p.Log), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Env = append(append(os.Environ(), p.Env...), labEnviron+"="+lab)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A child is forked from the calling thread and inherits its namespace.
	if err := inNamespace(ns, cmd.Start); err != nil {
		return err
	}
	p.PID = cmd.Process.Pid
	if p.Start, _, err = procStat(p.PID); err != nil {
		return err
	}
	go cmd.Wait() // a zombie would look like a living process
	return nil
}

// procStat reads start time and state letter of a process.
func procStat(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The command, field 2, is in parentheses and may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("process %d: short stat", pid)
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return start, f[0][0], err
}

// alive reports whether the process runs (or is stopped by a signal).
func (p proc) alive() bool {
	if p.PID == 0 {
		return false
	}
	start, state, err := procStat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// signal sends sig if that very process is still there.
func (p proc) signal(sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return nil // gone
	}
	defer unix.Close(fd)
	if !p.alive() { // looked at while the descriptor holds the number
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// kill ends a process at once and waits until it is gone.
func (l *Lab) kill(ctx context.Context, name string) error {
	return l.st.Processes[name].end(ctx, name, syscall.SIGKILL, killBound)
}

// stop asks a process to end and kills it if it does not.
func (l *Lab) stop(ctx context.Context, name string) error {
	p := l.st.Processes[name]
	if err := p.end(ctx, name, syscall.SIGTERM, stopBound); err == nil {
		return nil
	}
	return p.end(ctx, name, syscall.SIGKILL, killBound)
}

func (p proc) end(ctx context.Context, name string, sig syscall.Signal, bound time.Duration) error {
	if err := p.signal(sig); err != nil {
		return err
	}
	return until(ctx, bound, name+" to end", func() (bool, error) { return !p.alive(), nil })
}

// until polls done until it is true, fails, or the bound is over.
func until(ctx context.Context, bound time.Duration, what string, done func() (bool, error)) error {
	return untilEvery(ctx, pollInterval, bound, what, done)
}

func untilEvery(ctx context.Context, every, bound time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("waited %s for %s", bound, what))
	defer cancel()
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}

// strays finds every process that carries the lab's mark in its environment:
// what a crash left between fork and state file, and daemons' children too.
func strays(lab string) (found []proc) {
	mark := []byte(labEnviron + "=" + lab)
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(d + "/environ")
		if err != nil || !slices.ContainsFunc(bytes.Split(env, []byte{0}), func(e []byte) bool { return bytes.Equal(e, mark) }) {
			continue // gone, or not ours
		}
		p := proc{PID: pid}
		if p.Start, _, err = procStat(pid); err == nil && p.alive() {
			found = append(found, p)
		}
	}
	return found
}

// killStrays ends them all.
func killStrays(ctx context.Context, lab string) error {
	return until(ctx, killBound, "the lab's processes to end", func() (bool, error) {
		found := strays(lab)
		var errs []error
		for _, p := range found {
			errs = append(errs, p.signal(syscall.SIGKILL))
		}
		return len(found) == 0, errors.Join(errs...)
	})
}
