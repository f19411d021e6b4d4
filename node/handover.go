package node

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Sockets of SSTP outlive this process: see notifier. What the process before it
// gave away comes back as descriptors from 3 on (sd_listen_fds(3)).
const (
	firstInherited = 3
	maxInherited   = 64 // a VIP has one; more than that is not ours
	socketPrefix   = "sstp-"
)

// socketName names a listener for the service manager, whose names have no colon.
func socketName(at string) string {
	ap, err := netip.ParseAddrPort(at)
	if err != nil {
		return socketPrefix + strings.ReplaceAll(at, ":", "_")
	}
	return socketPrefix + strings.ReplaceAll(ap.Addr().String(), ":", "_") + "-" + strconv.Itoa(int(ap.Port()))
}

// inheritedListeners takes over what the service manager hands to this process,
// by address and port. The environment is cleared: no child must think that it
// is meant.
func inheritedListeners() map[string]*net.TCPListener {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	n, err := strconv.Atoi(count)
	if pid != strconv.Itoa(os.Getpid()) || err != nil || n < 1 || n > maxInherited {
		return nil
	}
	out := make(map[string]*net.TCPListener)
	all := strings.Split(names, ":")
	for i := range n {
		fd := firstInherited + i
		unix.CloseOnExec(fd)
		if i >= len(all) || !strings.HasPrefix(all[i], socketPrefix) {
			continue
		}
		f := os.NewFile(uintptr(fd), all[i])
		ln, err := net.FileListener(f) // a copy
		f.Close()
		if err != nil {
			continue // no listening socket any more
		}
		if tcp, ok := ln.(*net.TCPListener); ok && out[ln.Addr().String()] == nil {
			out[ln.Addr().String()] = tcp
			continue
		}
		ln.Close()
	}
	return out
}

// handover keeps what the service manager holds equal to what listens.
type handover struct {
	notify *notifier
	kept   []string // names; of the one goroutine that applies
}

func newHandover(n *notifier, inherited map[string]*net.TCPListener) *handover {
	h := &handover{notify: n}
	for at := range inherited {
		h.kept = append(h.kept, socketName(at))
	}
	return h
}

// update takes copies of the listeners by address and port, and closes them.
func (h *handover) update(listeners map[string]*os.File) {
	var names []string
	for at, f := range listeners {
		name := socketName(at)
		h.notify.keep(name, f)
		f.Close()
		names = append(names, name)
	}
	for _, name := range h.kept {
		if !slices.Contains(names, name) {
			h.notify.drop(name)
		}
	}
	h.kept = names
}
