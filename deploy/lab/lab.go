package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Lab is one laboratory, attached to this process. One process at a time
// holds it (a file lock); Close lets go of it and leaves it running.
type Lab struct {
	dir   string
	lock  *os.File
	st    labState
	peers peers
	out   io.Writer
}

const (
	bpfDir    = "bpf"            // a bpffs, mounted below the lab's folder
	downBound = 30 * time.Second // of a removal, also when ctx has ended
)

// Up builds the lab of these options and starts everything in it: it returns
// when all nodes are in the router's ECMP set and all clients are served. A
// lab of that name that exists already is an error (Down removes it). On error
// everything made so far is removed again.
func Up(ctx context.Context, o Options) (*Lab, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	lock, err := lockLab(o.Name)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(labDir(o.Name)); err == nil {
		lock.Close()
		return nil, fmt.Errorf("lab %s exists already: remove it first", o.Name)
	}
	l := &Lab{dir: labDir(o.Name), lock: lock, out: o.Out, st: labState{
		Options: o, Processes: map[string]proc{}, Members: map[string]bool{}, NextClient: o.Clients,
	}}
	l.peers = newPeers(l)
	if err := l.up(ctx); err != nil {
		err = fmt.Errorf("lab up: %w", err)
		if os.Getenv("VPNLB_LAB_KEEP") != "" { // for looking at what went wrong
			return nil, errors.Join(err, l.Close())
		}
		return nil, errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}
	return l, nil
}

func (l *Lab) up(ctx context.Context) error {
	o := l.st.Options
	l.say("building %d nodes, %d servers, router and client network in namespaces %s*", o.Nodes, o.Servers, l.ns(""))
	if err := l.buildFrame(); err != nil {
		return err
	}
	l.say("starting router and servers (%s)", o.Peers)
	if err := l.peers.startRouter(ctx); err != nil {
		return err
	}
	for i := range o.Servers {
		if err := l.peers.startServer(ctx, i+1); err != nil {
			return err
		}
	}
	if err := l.startCluster(ctx); err != nil {
		return err
	}
	l.say("starting %d clients", o.Clients)
	if err := l.peers.startClients(ctx); err != nil {
		return err
	}
	l.st.Ready = true
	return l.save()
}

// buildFrame makes folder, bpffs and topology.
func (l *Lab) buildFrame() error {
	if err := os.MkdirAll(l.path(bpfDir), 0o755); err != nil {
		return fmt.Errorf("make lab folder: %w", err)
	}
	if err := l.save(); err != nil { // from here on Down knows of us
		return err
	}
	// On a path of its own, before any namespace is entered: it is then seen
	// from all of them, and gone with its pins when unmounted.
	if err := unix.Mount("bpf", l.path(bpfDir), "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	if err := l.buildTopology(); err != nil {
		return err
	}
	return l.addCounters()
}

// Open attaches to the running lab of that name.
func Open(ctx context.Context, name string) (*Lab, error) {
	lock, err := lockLab(name)
	if err != nil {
		return nil, err
	}
	st, err := loadState(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = fmt.Errorf("no laboratory called %s stands here: 'vpnlb lab up' builds one", name)
	case err == nil && !st.Ready:
		err = fmt.Errorf("lab %s was never finished: remove it and build it again", name)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	l := &Lab{dir: labDir(name), lock: lock, st: st, out: io.Discard}
	l.peers = newPeers(l)
	return l, nil
}

// Close detaches from the lab.
func (l *Lab) Close() error { return l.lock.Close() }

// Down removes the lab, also when ctx has ended already.
func (l *Lab) Down(ctx context.Context) error {
	defer l.lock.Close()
	return remove(ctx, l.st.Options.Name, l.st)
}

// Down removes whatever the lab of that name left: processes, namespaces,
// mounts, files. Idempotent.
func Down(ctx context.Context, name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("lab name %q: want 1 to 12 of a-z 0-9", name)
	}
	lock, err := lockLab(name)
	if err != nil {
		return err
	}
	defer lock.Close()
	st, err := loadState(name)
	if err != nil {
		st = labState{} // unreadable or absent: the marks are enough
	}
	return remove(ctx, name, st)
}

// remove takes everything away, going on after errors.
func remove(ctx context.Context, name string, st labState) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downBound)
	defer cancel()
	var errs []error
	for _, p := range st.Processes {
		errs = append(errs, p.signal(unix.SIGKILL))
	}
	errs = append(errs, killStrays(ctx, name), removeFRR(name))
	left, err := namespacesOf(name)
	errs = append(errs, err)
	for _, ns := range left {
		errs = append(errs, deleteNamespace(ns))
	}
	dir := labDir(name)
	for {
		err := unix.Unmount(dir+"/"+bpfDir, unix.MNT_DETACH)
		if err == nil {
			continue // mounted more than once
		}
		if err != unix.EINVAL && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("unmount bpffs: %w", err))
		}
		break
	}
	errs = append(errs, os.RemoveAll(dir), os.RemoveAll(dir+".lock"))
	os.Remove(runDir) // only if no other lab is there
	return errors.Join(errs...)
}

// say prints one plain line of progress.
func (l *Lab) say(format string, args ...any) {
	fmt.Fprintf(l.out, format+"\n", args...)
}
