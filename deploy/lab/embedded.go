package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/sstp/storm"
	"github.com/vpnlb/vpnlb/deploy/lab/peer"
	"github.com/vpnlb/vpnlb/deploy/lab/router"
	"github.com/vpnlb/vpnlb/deploy/lab/sstppeer"
)

const (
	peerBound  = 10 * time.Second // until a peer's process answers
	loginBound = 30 * time.Second // until all clients are served
)

// embeddedPeers are processes of this binary.
type embeddedPeers struct{ l *Lab }

// startPeer writes a peer's configuration and runs "lab-peer KIND FILE".
func (e *embeddedPeers) startPeer(name, kind, role string, cfg any) error {
	b, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return fmt.Errorf("encode configuration of %s: %w", name, err)
	}
	file := e.l.path(name + ".json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return fmt.Errorf("write configuration of %s: %w", name, err)
	}
	return e.l.start(name, role, nil, e.l.st.Options.Binary, "lab-peer", kind, file)
}

// answers waits until the process is ready for questions, or has died.
func (e *embeddedPeers) answers(ctx context.Context, name string) error {
	return until(ctx, peerBound, name+" to answer", func() (bool, error) {
		if !e.l.st.Processes[name].alive() {
			return false, fmt.Errorf("%s has died: see %s", name, e.l.st.Processes[name].Log)
		}
		return peer.Ask(ctx, e.socket(name), "/stats", nil, nil) == nil, nil
	})
}

func (e *embeddedPeers) socket(name string) string { return e.l.path(name + ".sock") }

func (e *embeddedPeers) startRouter(context.Context) error {
	o := e.l.st.Options
	cfg := router.Config{
		ASN: routerASN, RouterID: routerOutside.Addr(), Listen: o.routers(),
		HoldTime: 3 * time.Second, // no VIPs: the lab keeps the floating route itself, spares are not in it
	}
	for i := 1; i <= o.Nodes+o.Spares; i++ {
		for _, f := range o.families() {
			cfg.Nodes = append(cfg.Nodes, router.Node{Address: f.nodeOutside(i), ASN: uint32(nodeASNBase + i)})
		}
	}
	return e.startPeer("router", "router", roleRouter, cfg)
}

func (e *embeddedPeers) startServer(ctx context.Context, i int) error {
	name := serverName(i)
	o := e.l.st.Options
	cfg := peer.ResponderConfig{Name: name, Number: uint16(i), TCP: o.Passthrough, Control: e.socket(name)}
	for _, f := range o.families() {
		cfg.Addrs = append(cfg.Addrs, f.server(i))
		if o.DSR {
			cfg.Addrs = append(cfg.Addrs, f.vip)
		}
	}
	err := e.startPeer(name, "responder", name, cfg)
	if err != nil {
		return err
	}
	if err := e.answers(ctx, name); err != nil {
		return err
	}
	return e.startSSTP(ctx, i)
}

func (e *embeddedPeers) killServer(ctx context.Context, i int) error {
	err := e.l.kill(ctx, serverName(i))
	if e.l.st.Options.SSTP != SSTPOff {
		err = errors.Join(err, e.l.kill(ctx, sstpName(i)))
	}
	return err
}

const clientsName = "clients"

func (e *embeddedPeers) startClients(ctx context.Context) error {
	o := e.l.st.Options
	err := e.startPeer(clientsName, "clients", roleClient, peer.ClientsConfig{
		VIP: vipAddr, VIP6: vip6Addr, Addrs: o.clients(0, o.Clients), MoveEvery: moveEvery,
		Rate: o.Rate, LossAfter: o.LossAfter, Control: e.socket(clientsName),
	})
	if err != nil {
		return err
	}
	if err := e.answers(ctx, clientsName); err != nil {
		return err
	}
	if err := e.l.allServed(ctx, loginBound); err != nil {
		return err
	}
	return e.startTCPClients(ctx)
}

// allServed waits until every client has a tunnel.
func (l *Lab) allServed(ctx context.Context, bound time.Duration) error {
	var t ClientTotals
	every := 10 * pollInterval
	if l.st.Options.Peers == Real {
		every = realPoll
	}
	err := untilEvery(ctx, every, bound, "all clients to be served", func() (bool, error) {
		s, err := l.peers.snapshot(ctx)
		t = s.totals()
		return t.Up == t.Clients, err
	})
	if err != nil {
		return fmt.Errorf("%w (%d of %d are)", err, t.Up, t.Clients)
	}
	return nil
}

func (e *embeddedPeers) addClients(ctx context.Context, addrs []netip.Addr) error {
	err := e.l.inside(roleClient, func() error { return addLoopback(addrs) })
	if err != nil {
		return err
	}
	return e.command(ctx, "/add", addrs)
}

func (e *embeddedPeers) relogin(ctx context.Context, addrs []netip.Addr) error {
	return e.command(ctx, "/relogin", addrs)
}

func (e *embeddedPeers) command(ctx context.Context, path string, addrs []netip.Addr) error {
	b, err := json.Marshal(addrs)
	if err != nil {
		return fmt.Errorf("encode command: %w", err)
	}
	return peer.Ask(ctx, e.socket(clientsName), path, bytes.NewReader(b), nil)
}

func (e *embeddedPeers) snapshot(ctx context.Context) (snapshot, error) {
	var cs peer.ClientsStats
	if err := peer.Ask(ctx, e.socket(clientsName), "/stats", nil, &cs); err != nil {
		return snapshot{}, err
	}
	s := snapshot{At: cs.Now, Clients: map[netip.Addr]clientView{}, Strays: map[netip.Addr]int64{}}
	for _, c := range cs.Clients {
		v := clientView{Up: c.Up, Logins: c.Logins, Login: strconv.FormatInt(c.Logins, 10), Sent: c.Sent, Lost: c.Lost, Foreign: c.Foreign, Moves: c.Moves}
		for _, x := range c.Sessions {
			v.Server = int(x.Server)
			v.Sessions = append(v.Sessions, session{Server: int(x.Server), From: x.From, Cause: x.Cause, Gap: time.Duration(x.Gap * float64(time.Second))})
		}
		for _, w := range c.Windows {
			v.Windows = append(v.Windows, window(w))
		}
		s.Clients[c.Client] = v
	}
	for _, rs := range e.servers(ctx) {
		for a, n := range rs.Strays {
			addr, err := netip.ParseAddr(a)
			if err != nil {
				return s, fmt.Errorf("read strays of %s: %w", rs.Name, err)
			}
			s.Strays[addr] += int64(n)
		}
	}
	return s, nil
}

// servers asks the servers that run how they fare, by their number.
func (e *embeddedPeers) servers(ctx context.Context) map[int]peer.ResponderStats {
	out := map[int]peer.ResponderStats{}
	for i := 1; i <= e.l.st.Options.Servers; i++ {
		var rs peer.ResponderStats
		if e.l.st.Processes[serverName(i)].alive() && peer.Ask(ctx, e.socket(serverName(i)), "/stats", nil, &rs) == nil {
			out[i] = rs
		} // else it is dead, or was killed just now
	}
	return out
}

// PeerMain is the hidden subcommand "lab-peer KIND FILE": one embedded peer,
// configured by a JSON file, running until SIGTERM. Kind "pppd" is what sstpc
// starts: a file to write, then pppd's arguments.
func PeerMain(kind string, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if kind == pppdKind && len(args) > 0 {
		return sstppeer.RunPPPD(ctx, args[0], args[1:])
	}
	if len(args) != 1 {
		return fmt.Errorf("lab-peer %s: want one configuration file", kind)
	}
	b, err := os.ReadFile(args[0])
	if err != nil {
		return fmt.Errorf("read peer configuration: %w", err)
	}
	switch kind {
	case "router":
		return runPeer(b, func(c router.Config) error {
			return router.Run(ctx, c, os.Stdout, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		})
	case "responder":
		return runPeer(b, func(c peer.ResponderConfig) error { return peer.RunResponder(ctx, c) })
	case "clients":
		return runPeer(b, func(c peer.ClientsConfig) error { return peer.RunClients(ctx, c) })
	case "tcpclients":
		return runPeer(b, func(c peer.TCPClientsConfig) error { return peer.RunTCPClients(ctx, c) })
	case "scatter":
		return runPeer(b, func(c peer.ScatterConfig) error { return peer.Scatter(ctx, c, os.Stdout) })
	case "spoof":
		return runPeer(b, func(c peer.SpoofConfig) error { return peer.Spoof(ctx, c) })
	case "replay":
		return runPeer(b, func(c peer.ReplayConfig) error { return peer.Replay(ctx, c, os.Stdout) })
	case "pieces":
		return runPeer(b, func(c peer.PiecesConfig) error { return peer.Pieces(ctx, c, os.Stdout) })
	case "probe":
		return runPeer(b, func(c peer.ProbeConfig) error { return peer.Probe(ctx, c, os.Stdout) })
	case watchName:
		return runPeer(b, func(c peer.WatchConfig) error { return peer.RunWatch(ctx, c) })
	case "ping":
		return runPeer(b, func(c peer.PingConfig) error { return peer.Ping(ctx, c, os.Stdout) })
	case stormName:
		return runPeer(b, func(c storm.Config) error {
			r, err := storm.Run(ctx, c)
			return errors.Join(err, json.NewEncoder(os.Stdout).Encode(r))
		})
	case sstpServerKind:
		return runPeer(b, func(c sstppeer.ServerConfig) error { return sstppeer.RunServer(ctx, c) })
	case sstpClientKind:
		return runPeer(b, func(c sstppeer.DialConfig) error { return sstppeer.RunDialer(ctx, c) })
	}
	return fmt.Errorf("lab-peer %q: no such kind", kind)
}

func runPeer[C any](b []byte, run func(C) error) error {
	var cfg C
	if err := json.Unmarshal(b, &cfg); err != nil {
		return fmt.Errorf("decode peer configuration: %w", err)
	}
	return run(cfg)
}
