package forward

import (
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// forwardRules are the chain of what is forwarded, in order: what comes from each
// outside interface, then what comes from interfaces of neither side. What servers
// send by an inside interface meets no rule: it is not restricted.
func (p Policy) forwardRules(servers, vips []addressSet) [][]expr.Any {
	var out [][]expr.Any
	for _, name := range p.Outside {
		out = append(out, p.outsideRules(name, servers, vips)...)
	}
	return append(out, p.otherRules()...)
}

// outsideRules are about what comes in by one outside interface.
func (p Policy) outsideRules(name string, servers, vips []addressSet) [][]expr.Any {
	var out [][]expr.Any
	for i, s := range servers {
		add := func(parts ...[]expr.Any) {
			r := slices.Concat(from(name), s.family.is(), slices.Concat(parts...), verdict(expr.VerdictAccept))
			out = append(out, r)
		}
		to := slices.Concat(s.family.load(s.family.destination), inSet(s.set))
		if slices.Contains(p.Inside, name) {
			// What comes from a server comes from inside; what the program has made a
			// reply of carries the VIP.
			add(s.family.load(s.family.source), inSet(s.set))
			for _, ours := range p.ours(s.family, sourcePort) {
				add(s.family.load(s.family.source), inSet(vips[i].set), ours)
			}
		}
		if len(p.Prefixes) == 0 {
			add(to)
			continue
		}
		for _, ours := range p.ours(s.family, destinationPort) {
			add(to, ours)
		}
	}
	out = append(out, p.prefixRules(from(name))...)
	return append(out, slices.Concat(from(name), []expr.Any{&expr.Counter{}}, verdict(expr.VerdictDrop)))
}

// otherRules are about what comes in by an interface that the policy does not name.
// The settings of IPv6 switch forwarding on for all interfaces, and an administrator
// may have done so for IPv4: without these rules such a host could reach the servers'
// segment, and the clients' side, around every firewall.
func (p Policy) otherRules() [][]expr.Any {
	var other []expr.Any
	for _, name := range p.interfaces() {
		other = append(other, notFrom(name)...)
	}
	out := p.prefixRules(other)
	for _, name := range p.interfaces() {
		out = append(out, slices.Concat(other, by(name), []expr.Any{&expr.Counter{}}, verdict(expr.VerdictDrop)))
	}
	return out
}

// prefixRules let pass what goes to the prefixes, by the interfaces that source matches.
func (p Policy) prefixRules(source []expr.Any) [][]expr.Any {
	var out [][]expr.Any
	for _, prefix := range p.Prefixes {
		f := ipv4
		if prefix.Addr().Is6() {
			f = ipv6
		}
		out = append(out, slices.Concat(source, f.is(), f.to(prefix), verdict(expr.VerdictAccept)))
	}
	return out
}

// ours matches our own traffic, one kind each: UDP 500 and 4500, ESP, TCP 443 in
// pass-through, later fragments, ICMP errors. side is where the server's port is.
func (p Policy) ours(f family, side uint32) [][]expr.Any {
	out := [][]expr.Any{
		protocol(unix.IPPROTO_ESP),
		slices.Concat(protocol(unix.IPPROTO_UDP), port(side, 500)),
		slices.Concat(protocol(unix.IPPROTO_UDP), port(side, 4500)),
		slices.Concat(protocol(unix.IPPROTO_UDP), f.laterFragment()),
	}
	if p.TCP {
		out = append(out,
			slices.Concat(protocol(unix.IPPROTO_TCP), port(side, 443)),
			slices.Concat(protocol(unix.IPPROTO_TCP), f.laterFragment()))
	}
	for _, kind := range f.icmpErrors {
		out = append(out, slices.Concat(protocol(f.icmp), icmpType(kind)))
	}
	return out
}

// outputRules keep this host from sending IPv6 redirects (RFC 4861, section 8.2)
// on its arms: on a shared segment they would teach a server a way to its clients
// around the cluster. IPv4 has send_redirects for that; IPv6 has nothing.
func (p Policy) outputRules() [][]expr.Any {
	const redirect = 137
	var out [][]expr.Any
	for _, arm := range p.interfaces() {
		out = append(out, slices.Concat(by(arm), ipv6.is(), protocol(ipv6.icmp), icmpType(redirect),
			[]expr.Any{&expr.Counter{}}, verdict(expr.VerdictDrop)))
	}
	return out
}
