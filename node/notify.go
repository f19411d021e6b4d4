package node

import (
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// notifier speaks sd_notify(3): READY means announced, or waiting for init or
// join, or parked, so that a rolling restart waits for the right moment. It also
// gives listening sockets to the service manager to keep (FDSTORE), who hands
// them to the next process: connections wait meanwhile and none is refused.
type notifier struct {
	addr string
	once sync.Once
}

func newNotifier(addr string) *notifier {
	if len(addr) > 0 && addr[0] == '@' {
		addr = "\x00" + addr[1:] // abstract socket
	}
	return &notifier{addr: addr}
}

func (n *notifier) ready()    { n.once.Do(func() { n.send("READY=1", nil) }) }
func (n *notifier) stopping() { n.send("STOPPING=1", nil) }
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
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Write(func(fd uintptr) bool { // package net sends no rights over a connected datagram socket
		return unix.Sendmsg(int(fd), []byte(state), rights, nil, 0) != unix.EAGAIN
	})
}
