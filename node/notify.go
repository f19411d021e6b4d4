package node

import (
	"net"
	"sync"
)

// notifier speaks sd_notify(3): READY means announced, or waiting for init or
// join, or parked, so that a rolling restart waits for the right moment.
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

func (n *notifier) ready()    { n.once.Do(func() { n.send("READY=1") }) }
func (n *notifier) stopping() { n.send("STOPPING=1") }

// send is best effort: nothing depends on the service manager.
func (n *notifier) send(state string) {
	if n.addr == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.addr, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte(state))
}
