package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vpnlb/vpnlb/deploy/lab/sstppeer"
)

// The real client against the laboratory's server, with no vpnlb between: what
// the drills lean on is proved first.

func needSSTPC(t *testing.T) {
	t.Helper()
	needRoot(t)
	for _, tool := range []string{"sstpc", "pppd", "ping", "iperf3"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: run deploy/checks/install-test-deps", err)
		}
	}
}

// terminate is an offloader of the simplest kind: it ends TLS at an address of
// a role's namespace, shows one certificate to all, and relays to one server.
func (l *Lab) terminate(t *testing.T, role string, at, to netip.AddrPort, cert string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(l.cert(cert))
	if err != nil {
		t.Fatal(err)
	}
	var ln net.Listener
	err = l.inside(role, func() (err error) {
		ln, err = net.Listen("tcp", at.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				context.AfterFunc(ctx, func() { c.Close() })
				front := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}})
				defer front.Close()
				var back net.Conn
				err := l.inside(role, func() (err error) {
					back, err = net.Dial("tcp", to.String())
					return err
				})
				if err != nil {
					return
				}
				defer back.Close()
				context.AfterFunc(ctx, func() { back.Close() })
				go func() {
					io.Copy(back, front)
					back.Close()
				}()
				io.Copy(front, back)
			})
		}
	})
}

// sstpFrame is a lab of one stand-in node and one server that speaks SSTP.
func sstpFrame(t *testing.T, name string, mode SSTPMode) *Lab {
	t.Helper()
	needSSTPC(t)
	o := Options{Name: name, Nodes: 1, Servers: 1, SSTP: mode}
	var l *Lab
	if mode == SSTPPassthrough {
		l = standInLab(t, o)
	} else {
		l = standInFrame(t, o)
		err := l.inside(nodeName(1), func() error {
			return errors.Join(addLoopback([]netip.Addr{vipAddr}), sysctl("net.ipv4.ip_forward", "1"))
		})
		if err != nil {
			t.Fatal(err)
		}
		err = l.inside(roleRouter, func() error {
			return netlink.RouteAdd(&netlink.Route{Dst: host(vipAddr), Gw: nodeOutside(1).AsSlice()})
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.peers.startServer(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		l.terminate(t, nodeName(1), netip.AddrPortFrom(vipAddr, httpsPort), netip.AddrPortFrom(serverAddr(1), httpPort), certOld)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.showLogs(t)
			for i := range sstpClients {
				if st, err := l.sstpClient(context.Background(), i+1); err == nil {
					t.Logf("client %d: %+v", i+1, st)
				}
			}
			if st, err := l.sstpServer(context.Background(), 1); err == nil {
				t.Logf("server: %+v", st)
			}
		}
	})
	return l
}

// wantCall waits until server 1 has exactly this user's call, with this hash.
func wantCall(t *testing.T, l *Lab, i int, hash string) (sstppeer.CallStats, sstppeer.DialStats) {
	t.Helper()
	var call sstppeer.CallStats
	var client sstppeer.DialStats
	err := until(t.Context(), sstpBound, "the call of "+sstpRole(i), func() (bool, error) {
		st, err := l.sstpServer(t.Context(), 1)
		if err != nil {
			return false, err
		}
		if client, err = l.sstpClient(t.Context(), i); err != nil {
			return false, err
		}
		at := slices.IndexFunc(st.Calls, func(c sstppeer.CallStats) bool { return c.User == sstpRole(i) && c.Up })
		if at >= 0 {
			call = st.Calls[at]
		}
		return at >= 0 && client.Up, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if call.Hash != hash || call.Inner != client.Link.Local || client.Link.Peer != sstpInner(1) {
		t.Errorf("call %+v, client %+v, want the hash %s", call, client, hash)
	}
	return call, client
}

func TestStandInSSTPC(t *testing.T) {
	for _, c := range []struct {
		name string
		mode SSTPMode
	}{{"tsstp1", SSTPPassthrough}, {"tsstp2", SSTPOffload}} {
		t.Run(string(c.mode), func(t *testing.T) {
			start := time.Now()
			l := sstpFrame(t, c.name, c.mode)
			if c.mode == SSTPOffload {
				l.probe(t)
			}
			if err := l.dialSSTP(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			hash, err := l.certHash(certOld)
			if err != nil {
				t.Fatal(err)
			}
			call, client := wantCall(t, l, 1, hash)
			from := sstpLink(1).Addr()
			if c.mode == SSTPOffload {
				from = nodeInside(1)
			}
			if call.From.Addr() != from {
				t.Errorf("the server saw %s, want %s", call.From, from)
			}
			if err := l.pingTunnel(t.Context(), 1, client.Link); err != nil {
				t.Error(err)
			}
			rate, err := l.iperfTunnel(t.Context(), 1, client.Link, time.Second)
			if err != nil || rate < 1e6 {
				t.Errorf("%.0f bit/s through the tunnel, %v", rate, err)
			}
			t.Logf("%.0f Mbit/s through the tunnel; %s until here", rate/1e6, time.Since(start).Round(time.Millisecond))
			wrongHash(t, l, hash)
		})
	}
}

// wrongHash configures the hash of another certificate, as an administrator may
// who forgot a server: the call that stands stays, new ones log in and are aborted.
func wrongHash(t *testing.T, l *Lab, right string) {
	t.Helper()
	wrong, err := l.certHash(certNew)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.trustSSTP(t.Context(), 1, wrong); err != nil {
		t.Fatal(err)
	}
	if err := l.dialSSTP(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	err = until(t.Context(), sstpBound, "two aborted calls", func() (bool, error) {
		st, err := l.sstpServer(t.Context(), 1)
		return st.Ended["certificate_hash"] >= 2 && st.Hashes[right] >= 2, err
	})
	if err != nil {
		t.Fatal(err)
	}
	st, err := l.sstpServer(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(st.Ended); n != 1 || !slices.ContainsFunc(st.Calls, func(c sstppeer.CallStats) bool { return c.User == sstpRole(1) && c.Up }) {
		t.Errorf("the call of before is gone, or calls ended otherwise: %+v", st)
	}
	if err := l.trustSSTP(t.Context(), 1, right, wrong); err != nil {
		t.Fatal(err)
	}
	wantCall(t, l, 2, right)
	if err := l.hangUpSSTP(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	err = until(t.Context(), sstpBound, "the end of client 2's call", func() (bool, error) {
		st, err := l.sstpServer(t.Context(), 1)
		return len(st.Calls) == 1 && st.Ended["client_disconnect"] == 1, err
	})
	if err != nil {
		t.Error(err)
	}
}

// probe asks the server what health checks ask.
func (l *Lab) probe(t *testing.T) {
	t.Helper()
	var got []byte
	err := l.inside(nodeName(1), func() error {
		c, err := net.Dial("tcp", netip.AddrPortFrom(serverAddr(1), httpPort).String())
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Fprint(c, "HEAD /sra_%7BBA195980-CD49-458b-9E23-C84EE0ADCD75%7D/ HTTP/1.1\r\nHost: probe\r\n\r\n")
		got, err = io.ReadAll(c)
		return err
	})
	if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 401 ") {
		t.Errorf("%q, %v", got, err)
	}
	if st, err := l.sstpServer(t.Context(), 1); err != nil || st.Probes != 1 || st.Begun != 0 {
		t.Errorf("%+v, %v", st, err)
	}
}
