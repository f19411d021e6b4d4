package node

import (
	"context"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// notifier speaks sd_notify(3): READY means announced, or that there is nothing
// to announce (see settled), or waiting for init or join, or parked, so that a
// rolling restart waits for the right moment. It also
// gives listening sockets to the service manager to keep (FDSTORE), who hands
// them to the next process: connections wait meanwhile and none is refused.
type notifier struct {
	addr  string
	said  atomic.Bool // READY
	quiet sync.Once
}

func newNotifier(addr string) *notifier {
	if len(addr) > 0 && addr[0] == '@' {
		addr = "\x00" + addr[1:] // abstract socket
	}
	return &notifier{addr: addr}
}

func (n *notifier) ready() {
	n.quiet.Do(func() {
		n.said.Store(true)
		n.send("READY=1", nil)
	})
}

// startPatience is asked for again and again while READY has not been said, by a
// node whose unit bounds the start: one that waits for a leader or a router has not
// failed, and killing it would only keep the others from electing one.
const startPatience = 30 * time.Second

// untilReady asks for patience every third of that until READY was said.
func (n *notifier) untilReady(ctx context.Context, patience time.Duration) {
	for !n.said.Load() {
		n.busy(patience)
		if !pause(ctx, patience/3) {
			return
		}
	}
}

func (n *notifier) stopping() { n.send("STOPPING=1", nil) }

// busy asks for so much time before the manager loses its patience.
func (n *notifier) busy(d time.Duration) {
	n.send("EXTEND_TIMEOUT_USEC="+strconv.FormatInt(d.Microseconds(), 10), nil)
}
func (n *notifier) status(s string) {
	n.send("STATUS="+s, nil)
}

// keep gives a copy of a socket away, under a name; drop takes the name back.
// The manager keeps one that it has already once.
func (n *notifier) keep(name string, f *os.File) { n.send("FDSTORE=1\nFDNAME="+name, f) }
func (n *notifier) drop(name string)             { n.send("FDSTOREREMOVE=1\nFDNAME="+name, nil) }

// send is best effort: nothing depends on the service manager.
func (n *notifier) send(state string, f *os.File) {
	if n.addr == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.addr, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	out, err := c.SyscallConn() // package net sends no rights over a connected datagram socket
	if err != nil {
		return
	}
	write := func(rights []byte) {
		out.Write(func(fd uintptr) bool { return unix.Sendmsg(int(fd), []byte(state), rights, nil, 0) != unix.EAGAIN })
	}
	if f == nil {
		write(nil)
		return
	}
	// Never f.Fd: it makes the socket a blocking one, for all who have a copy, and
	// nothing would end an accept any more.
	given, err := f.SyscallConn()
	if err != nil {
		return
	}
	given.Control(func(fd uintptr) { write(unix.UnixRights(int(fd))) })
}
