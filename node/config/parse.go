package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// parse reads what it can, whatever the faults.
func parse(data []byte) (*Config, *reader) {
	c := &Config{
		DataDir:     DefaultDataDir,
		AdminSocket: DefaultAdminSocket,
		Cluster:     Cluster{Heartbeat: DefaultHeartbeat},
		Dataplane:   Dataplane{PinDir: DefaultPinDir, Attach: AttachAuto, MaxClients: DefaultMaxClients},
		BGP:         BGP{HoldUp: DefaultHoldUp, Prepend: DefaultPrepend},
		SSTP:        SSTP{Drain: DefaultDrain, Spread: DefaultSpread, Connections: DefaultConnections, PerSource: DefaultPerSource},
		Log:         Log{Level: slog.LevelInfo, Format: FormatText},
	}
	r := &reader{lines: map[string]int{}}
	if len(data) > MaxFile {
		r.fault(0, "", "the file is larger than %d bytes; a node file is a page of text", MaxFile)
		return c, r
	}
	root := r.tree(data)
	if root == nil {
		return c, r
	}
	r.section(root, "", []field{
		{"name", "write the name of this node, such as name: n1", r.name(&c.Name)},
		{"data_dir", "", r.path(&c.DataDir, 4096)},
		{"admin_socket", "", r.path(&c.AdminSocket, maxSocketPath)},
		{"cluster", "write a cluster section with this node's address", r.cluster(&c.Cluster)},
		{"dataplane", "write a dataplane section with the outside interface", r.dataplane(&c.Dataplane)},
		{"bgp", "", r.bgp(&c.BGP)},
		{"sstp", "", r.sstp(&c.SSTP)},
		{"log", "", r.log(&c.Log)},
	})
	r.complete(c)
	return c, r
}

// tree parses the YAML text; nil when there is nothing to walk.
func (r *reader) tree(data []byte) *yaml.Node {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		r.fault(0, "", "the file is empty; begin with deploy/vpnlb.example.yaml")
		return nil
	}
	if err != nil {
		line, text := yamlError(err)
		r.fault(line, "", "is not YAML (%s); mind indentation with spaces and quotes around values that hold \": \"", text)
		return nil
	}
	if err := dec.Decode(&next); !errors.Is(err, io.EOF) {
		r.fault(next.Line, "", "a second document begins here; a node file is one document, remove the --- line")
	}
	return resolve(doc.Content[0])
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

func yamlError(err error) (line int, text string) {
	m := yamlLine.FindStringSubmatch(strings.SplitN(err.Error(), "\n", 2)[0])
	if m == nil {
		return 0, err.Error()
	}
	line, _ = strconv.Atoi(m[1])
	return line, m[2]
}

func (r *reader) cluster(c *Cluster) func(*yaml.Node, string) {
	return func(n *yaml.Node, key string) {
		r.section(n, key, []field{
			{"address", "write the address the other nodes dial, such as address: 198.51.100.1:7950", r.addrPort(&c.Address, DefaultClusterPort)},
			{"gossip", "", r.addrPort(&c.Gossip, DefaultGossipPort)},
			{"heartbeat", "", r.duration(&c.Heartbeat, MinHeartbeat, MaxHeartbeat, 1,
				"too short elects a new leader at every hiccup, too long delays failover; 300ms is right on a LAN")},
		})
	}
}

func (r *reader) dataplane(d *Dataplane) func(*yaml.Node, string) {
	return func(n *yaml.Node, key string) {
		r.section(n, key, []field{
			{"pin_dir", "", r.path(&d.PinDir, 4096)},
			{"outside", "write the interface towards the routers, such as outside: eth0", r.ifname(&d.Outside)},
			{"inside", "", r.ifname(&d.Inside)},
			{"attach", "", choice(r, &d.Attach, AttachAuto, AttachNative, AttachGeneric)},
			{"max_clients", "", r.number(MinMaxClients, MaxMaxClients, "a number of clients", func(v uint64) { d.MaxClients = uint32(v) })},
		})
	}
}

func (r *reader) bgp(b *BGP) func(*yaml.Node, string) {
	return func(n *yaml.Node, key string) {
		r.section(n, key, []field{
			{"asn", "write this node's AS number, such as asn: 65011", r.asn(&b.ASN)},
			{"router_id", "write an IPv4 address that no other BGP speaker uses, such as router_id: 192.0.2.11", r.addr(&b.RouterID)},
			{"next_hop6", "", r.globalIPv6(&b.NextHop6)},
			{"hold_up", "", r.duration(&b.HoldUp, 0, MaxHoldUp, 1, "too short passes flapping on to the routers, too long keeps a good node idle")},
			{"prepend", "", r.number(1, MaxPrepend, "a number of repetitions", func(v uint64) { b.Prepend = int(v) })},
			{"listen_port", "", r.number(0, 65535, "a TCP port, or 0 not to listen,", func(v uint64) { b.ListenPort = uint16(v) })},
			{"neighbours", "list the routers, or remove the bgp section to speak no BGP", r.neighbours(b)},
		})
		if b.RouterID.IsValid() && !b.RouterID.Is4() {
			r.fault(r.lines[key+".router_id"], key+".router_id", "%q is not an IPv4 address; the BGP identifier is one (RFC 6286), such as 192.0.2.11", b.RouterID)
		}
	}
}

func (r *reader) neighbours(b *BGP) func(*yaml.Node, string) {
	return func(n *yaml.Node, key string) {
		if n.Kind != yaml.SequenceNode {
			r.fault(n.Line, key, "must be a list, each entry on a line that begins with \"- \", not %s", shape(n))
			return
		}
		if len(n.Content) == 0 {
			r.fault(n.Line, key, "is empty; list the routers, or remove the bgp section to speak no BGP")
		}
		if len(n.Content) > MaxNeighbours {
			r.fault(n.Line, key, "has %d entries; at most %d are supported", len(n.Content), MaxNeighbours)
			return
		}
		first := map[netip.Addr]int{}
		for i, e := range n.Content {
			path := fmt.Sprintf("%s[%d]", key, i)
			nb := r.neighbour(resolve(e), path)
			if at, again := first[nb.Address]; again && nb.Address.IsValid() {
				r.fault(e.Line, path+".address", "%s is already the neighbour of line %d; keep one of them", nb.Address, at)
			}
			first[nb.Address] = e.Line
			b.Neighbours = append(b.Neighbours, nb)
		}
	}
}

func (r *reader) neighbour(n *yaml.Node, key string) Neighbour {
	nb := Neighbour{HoldTime: DefaultHoldTime, Port: DefaultBGPPort}
	r.section(n, key, []field{
		{"address", "write the router's address, such as address: 192.0.2.1", r.addr(&nb.Address)},
		{"asn", "write the router's AS number, such as asn: 64999", r.asn(&nb.ASN)},
		{"hold_time", "", r.duration(&nb.HoldTime, MinHoldTime, MaxHoldTime, DefaultHoldTime/3,
			"RFC 4271 allows whole seconds from 3; a long one keeps traffic on a hung node")},
		{"local_address", "", r.addr(&nb.LocalAddress)},
		{"next_hop6", "", r.globalIPv6(&nb.NextHop6)},
		{"port", "", r.number(1, 65535, "a TCP port", func(v uint64) { nb.Port = uint16(v) })},
		{"passive", "", r.flag(&nb.Passive)},
		{"ttl_security", "", r.flag(&nb.TTLSecurity)},
		{"multihop_ttl", "", r.number(0, 255, "a number of hops, or 0 for a router on the link,", func(v uint64) { nb.MultihopTTL = uint8(v) })},
		{"password_file", "", r.path(&nb.PasswordFile, 4096)},
	})
	if nb.LocalAddress.IsValid() && nb.Address.IsValid() && nb.LocalAddress.Is4() != nb.Address.Is4() {
		r.fault(r.lines[key+".local_address"], key+".local_address",
			"%s and the router's %s are of different families; use two IPv4 or two IPv6 addresses", nb.LocalAddress, nb.Address)
	}
	if nb.NextHop6.IsValid() && nb.Address.Is6() {
		r.fault(r.lines[key+".next_hop6"], key+".next_hop6",
			"is for a session of IPv4, and the router's address is %s; remove it: the next hop is the session's own address", nb.Address)
	}
	return nb
}

func (r *reader) sstp(s *SSTP) func(*yaml.Node, string) {
	return func(n *yaml.Node, key string) {
		why := "a restart of the service waits for it"
		r.section(n, key, []field{
			{"drain", "", r.duration(&s.Drain, 0, MaxDrain, 1, why)},
			{"spread", "", r.duration(&s.Spread, 0, MaxDrain, 1, why)},
			{"connections", "", r.number(16, 1_000_000, "a number of connections", func(v uint64) { s.Connections = int(v) })},
			{"per_source", "", r.number(1, 1_000_000, "a number of connections", func(v uint64) { s.PerSource = int(v) })},
			{"decoy_file", "", r.path(&s.DecoyFile, 4096)},
		})
		if s.Spread > s.Drain {
			if r.lines[key+".spread"] == 0 {
				s.Spread = s.Drain // only drain was given, and is shorter
				return
			}
			r.fault(r.lines[key+".spread"], key+".spread", "%s is longer than sstp.drain, whose last part it is; write at most %s", s.Spread, s.Drain)
		}
	}
}

func (r *reader) log(l *Log) func(*yaml.Node, string) {
	return func(n *yaml.Node, key string) {
		level := "info"
		r.section(n, key, []field{
			{"level", "", choice(r, &level, "debug", "info", "warn", "error")},
			{"format", "", choice(r, &l.Format, FormatText, FormatJSON)},
		})
		_ = l.Level.UnmarshalText([]byte(level)) // one of the four words above
	}
}

// complete fills what depends on other keys and checks what spans several.
func (r *reader) complete(c *Config) {
	if c.Dataplane.Inside == "" {
		c.Dataplane.Inside = c.Dataplane.Outside
	}
	a, g := c.Cluster.Address, c.Cluster.Gossip
	if !g.IsValid() && a.IsValid() && r.lines["cluster.gossip"] == 0 {
		c.Cluster.Gossip = netip.AddrPortFrom(a.Addr(), DefaultGossipPort)
		g = c.Cluster.Gossip
	}
	if a.IsValid() && a == g {
		r.fault(max(r.lines["cluster.gossip"], r.lines["cluster.address"]), "cluster.gossip",
			"%s is also cluster.address, and both listen on TCP; give gossip another port, such as %d", g, DefaultGossipPort)
	}
	for i := range c.BGP.Neighbours {
		r.session(&c.BGP, &c.BGP.Neighbours[i], fmt.Sprintf("bgp.neighbours[%d]", i))
	}
}

// session checks what one router's keys and the section's must have in common.
func (r *reader) session(b *BGP, nb *Neighbour, key string) {
	fault := func(name, format string, a ...any) {
		r.fault(r.lines[key+"."+name], key+"."+name, format, a...)
	}
	if b.ASN != 0 && b.RouterID.IsValid() && nb.Address == b.RouterID {
		fault("address", "%s is this node's own router_id; write the router's address", nb.Address)
	}
	if nb.Passive && b.ListenPort == 0 {
		fault("passive", "the router dials this node, which does not listen; write bgp.listen_port, such as listen_port: %d", DefaultBGPPort)
	}
	if nb.MultihopTTL > 0 && nb.TTLSecurity {
		fault("multihop_ttl", "excludes ttl_security, which takes nothing that crossed a router; keep one of them")
	}
	if nb.MultihopTTL > 0 && b.ASN != 0 && nb.ASN == b.ASN {
		fault("multihop_ttl", "is for routers of another AS; sessions within AS %d may cross routers anyway, so remove it", b.ASN)
	}
}
