package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// realPeers are FRR and strongSwan. Clients with an even number log in with a
// certificate, the others by EAP-MSCHAPv2; one charon holds them all.
type realPeers struct {
	l *Lab
	// history remembers the logins seen by snapshots: charon tells only what
	// is now.
	history map[netip.Addr][]session
	logins  map[netip.Addr]string
}

// byEAP reports how client i logs in.
func byEAP(i int) bool { return i%2 == 1 }

const (
	realLoginBound = 90 * time.Second
	realPoll       = 400 * time.Millisecond // between two looks at all charons
	clientsSwan    = "clients"
	discardPort    = 9
	speakTries     = 5
)

func (r *realPeers) startRouter(ctx context.Context) error {
	if err := writePKI(r.l.path("pki")); err != nil {
		return err
	}
	return r.l.startFRR(ctx)
}

func (r *realPeers) server(i int) swan {
	return swan{l: r.l, name: serverName(i), role: serverName(i), cert: "server"}
}

func (r *realPeers) clients() swan {
	return swan{l: r.l, name: clientsSwan, role: roleClient, cert: "client"}
}

func (r *realPeers) startServer(ctx context.Context, i int) error {
	s := r.server(i)
	if err := s.prepare(); err != nil {
		return err
	}
	type auth struct{ Name, Remote string }
	err := s.render(swanServer, "swanctl/swanctl.conf", map[string]any{
		"ServerID": serverID, "Inner": innerPrefix, "Pool": serverPool(i),
		"Auths": []auth{
			{"certificate", "auth = pubkey\n      cacerts = ca.crt"},
			{"eap", "auth = eap-mschapv2\n      eap_id = %any"},
		},
	})
	if err != nil {
		return err
	}
	err = r.l.inside(s.role, func() error {
		if err := addLoopback([]netip.Addr{innerServer}); err != nil && !isExist(err) {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.run(ctx)
}

func (r *realPeers) killServer(ctx context.Context, i int) error { return r.l.kill(ctx, serverName(i)) }

// writeClients renders the connections of the first n clients.
func (r *realPeers) writeClients(n int) error {
	type client struct {
		N    int
		Addr netip.Addr
		VIP  netip.Addr
		EAP  bool
	}
	var list []client
	for i := range n {
		a := r.l.st.Options.client(i)
		list = append(list, client{i, a, r.l.vipFor(a), byEAP(i)})
	}
	return r.clients().render(swanClients, "swanctl/swanctl.conf", map[string]any{
		"ServerID": serverID, "ClientID": clientID, "Inner": innerPrefix, "Clients": list,
	})
}

func (r *realPeers) startClients(ctx context.Context) error {
	s := r.clients()
	if err := s.prepare(); err != nil {
		return err
	}
	if err := r.writeClients(r.l.st.Options.Clients); err != nil {
		return err
	}
	if err := s.run(ctx); err != nil {
		return err
	}
	if err := r.l.allServed(ctx, realLoginBound); err != nil {
		return err
	}
	if err := r.speak(ctx); err != nil {
		return err
	}
	return r.startPings(ctx)
}

// speak lets every tunnel carry a packet each way, as any real client's does at
// once: the records of tunnels without a word are short-lived, and no more than a
// budget of them are made for a prefix.
func (r *realPeers) speak(ctx context.Context) error {
	list, err := r.clients().sas(ctx)
	if err != nil {
		return err
	}
	return r.l.inside(roleClient, func() error {
		for _, sa := range list {
			if !sa.up || !sa.inner.IsValid() {
				continue
			}
			if err := speakFrom(sa.inner); err != nil {
				return fmt.Errorf("tunnel of %s: %w", sa.local, err)
			}
		}
		return nil
	})
}

// speakFrom sends a datagram to a port of the inner server where nobody is, until
// its refusal comes back.
func speakFrom(inner netip.Addr) error {
	c, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(inner, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(innerServer, discardPort)))
	if err != nil {
		return err
	}
	defer c.Close()
	for range speakTries {
		if err = c.SetDeadline(time.Now().Add(pingPatience)); err != nil {
			return err
		}
		if _, err = c.Write([]byte{0}); err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil
		}
	}
	return fmt.Errorf("no word came back: %w", err)
}

func (r *realPeers) addClients(ctx context.Context, addrs []netip.Addr) error {
	if err := r.l.inside(roleClient, func() error { return addLoopback(addrs) }); err != nil {
		return err
	}
	if err := r.writeClients(r.l.st.NextClient); err != nil {
		return err
	}
	_, err := r.clients().ctl(ctx, "--load-conns")
	return err
}

func (r *realPeers) relogin(ctx context.Context, addrs []netip.Addr) error {
	for _, a := range addrs {
		i := clientIndex(a)
		if _, err := r.clients().ctl(ctx, "--terminate", "--ike", fmt.Sprintf("c%d", i), "--timeout", "5"); err != nil {
			return err
		}
		if _, err := r.clients().ctl(ctx, "--initiate", "--child", fmt.Sprintf("n%d", i), "--timeout", "20"); err != nil {
			return err
		}
	}
	return nil
}

func (r *realPeers) snapshot(ctx context.Context) (snapshot, error) {
	s := snapshot{At: time.Now(), Clients: map[netip.Addr]clientView{}, Strays: map[netip.Addr]int64{}}
	where := map[string]int{} // responder SPI → server
	for i := range r.l.st.Options.Servers {
		if !r.l.st.Processes[serverName(i+1)].alive() {
			continue
		}
		list, err := r.server(i + 1).sas(ctx)
		if err != nil {
			if !r.l.st.Processes[serverName(i+1)].alive() {
				continue // killed meanwhile
			}
			return s, err
		}
		for _, sa := range list {
			where[sa.responder] = i + 1
		}
	}
	list, err := r.clients().sas(ctx)
	if err != nil {
		return s, err
	}
	if r.history == nil {
		r.history, r.logins = map[netip.Addr][]session{}, map[netip.Addr]string{}
	}
	for i := range r.l.st.NextClient {
		a := r.l.st.Options.client(i)
		s.Clients[a] = clientView{Sessions: slices.Clone(r.history[a])}
	}
	for _, sa := range list {
		if !sa.up {
			continue
		}
		v := s.Clients[sa.local]
		v.Up, v.Login, v.Server = true, sa.responder, where[sa.responder]
		if v.Server == 0 {
			v.Up = false // an SA whose server is dead or has forgotten it
		} else if r.logins[sa.local] != sa.responder {
			r.logins[sa.local] = sa.responder
			r.history[sa.local] = append(r.history[sa.local], session{Server: v.Server, From: time.Now().Add(-sa.age)})
			v.Sessions = slices.Clone(r.history[sa.local])
		}
		s.Clients[sa.local] = v
	}
	for a, v := range s.Clients {
		v.Logins = int64(len(v.Sessions))
		if n := len(v.Sessions); n > 0 && v.Server == 0 {
			v.Server = v.Sessions[n-1].Server
		}
		s.Clients[a] = v
	}
	return s, r.addPings(&s)
}

// tunnelOf gives the inner address that a client was given.
func (r *realPeers) tunnelOf(ctx context.Context, a netip.Addr) (netip.Addr, error) {
	list, err := r.clients().sas(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, sa := range list {
		if sa.up && sa.local == a && sa.inner.IsValid() {
			return sa.inner, nil
		}
	}
	return netip.Addr{}, errors.New("client " + a.String() + " has no tunnel")
}
