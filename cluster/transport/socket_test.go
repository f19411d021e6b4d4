package transport

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"golang.org/x/sys/unix"
)

// On real sockets of both families, where timing and buffers are the kernel's.
func TestLoopback(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(at, func(t *testing.T) { onLoopback(t, at) })
	}
}

func onLoopback(t *testing.T, at string) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var nodes []*Transport
	for range 2 {
		ln, err := Listen(ctx, at)
		if err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skipf("no %s here: %v", at, err)
		}
		nodes = append(nodes, w.start(ctx, ln.Addr().String(), w.admit(state.RoleNode), func(_ *Config, d *Deps) {
			d.Listener, d.Dial = ln, nil
		}))
	}
	a, b := nodes[0], nodes[1]
	b.HandleRPC("/echo", Bytes(func(_ context.Context, _ Peer, in []byte) ([]byte, error) { return in, nil }))
	big := bytes.Repeat([]byte("x"), 4<<20)
	var out []byte
	if err := a.Call(within(t, ctx, 20*time.Second), Target{Addr: b.cfg.Addr}, "/echo", big, &out); err != nil || !bytes.Equal(out, big) {
		t.Errorf("echo of %d bytes: %d, %v", len(big), len(out), err)
	}
	go acceptOne(b.Raft())
	c, err := a.Raft().Dial(b.cfg.Addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("raft!"))
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "raft!" {
		t.Errorf("raft: %q, %v", got, err)
	}
	c.Close()
	cancel()
}

// Accepted sockets must inherit what the listener was given.
func TestSocketOptions(t *testing.T) {
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled, err := dialTCP(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	for name, c := range map[string]net.Conn{"dialled": dialled, "accepted": accepted} {
		rc, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var ms, proto int
		cerr := rc.Control(func(fd uintptr) {
			ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			proto, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
		})
		if cerr != nil || err != nil || ms != int(unackedTimeout.Milliseconds()) || proto != unix.IPPROTO_TCP {
			t.Errorf("%s: time-out %d ms, protocol %d, %v, %v", name, ms, proto, err, cerr)
		}
	}
}
