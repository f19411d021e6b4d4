package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// newNamespace makes a named network namespace, as "ip netns add" does: a
// bind mount that keeps it alive.
func newNamespace(name string) error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("make namespace folder: %w", err)
	}
	path := filepath.Join(netnsDir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("make namespace %s: %w", name, err)
	}
	f.Close()
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "bind", unix.MS_BIND, "")
	})
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("make namespace %s: %w", name, err)
	}
	return nil
}

// onOwnThread runs fn on a thread that dies with it, so nothing that fn does
// to its thread outlives it.
func onOwnThread(fn func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		errc <- fn()
	}()
	return <-errc
}

// inNamespace runs fn on a thread inside the named namespace. Sockets, handles
// and children that fn makes stay there; goroutines that it starts do not.
func inNamespace(name string, fn func() error) error {
	return onOwnThread(func() error {
		f, err := os.Open(filepath.Join(netnsDir, name))
		if err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", name, err)
		}
		return fn()
	})
}

// namespacesOf lists the namespaces of a lab that exist.
func namespacesOf(lab string) ([]string, error) {
	all, err := os.ReadDir(netnsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var out []string
	for _, e := range all {
		if strings.HasPrefix(e.Name(), nsPrefix+lab+"-") {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// deleteNamespace lets go of a namespace; the kernel destroys it, and the
// links in it, when its last process is gone.
func deleteNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL { // EINVAL: not mounted
		return fmt.Errorf("unmount namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace: %w", err)
	}
	return nil
}

// sysctl writes one value in the namespace of the calling thread; /proc/sys/net
// shows the writer's own. A key this kernel does not have is an error.
func sysctl(key, value string) error {
	path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s to %s: %w", key, value, err)
	}
	return nil
}
