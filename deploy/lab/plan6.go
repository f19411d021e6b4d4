package lab

import "net/netip"

// The IPv6 half of the address plan, all of it below 2001:db8::/32.
//
//	client 2001:db8:0:1::2 (client i has 2001:db8:c:<i>::/64) -- 2001:db8:0:1::1 router
//	router 2001:db8:0:2::1 == nodes' eth0 2001:db8:0:2::11..
//	nodes' eth1 2001:db8:0:3::1.. == servers 2001:db8:0:3::101..
//	floating gateways 2001:db8:0:3::201..; VIP 2001:db8:0:ff::10
//
// A client's key is its /64; the address that names it is the first one of it.
const (
	vip6Name  = "vpn6"
	keyBits6  = 64 // of a client's address, as VIPs have it by default
	sixEvery  = 4  // one client in so many speaks IPv6
	moveEvery = 2  // of those one in so many changes its interface identifier
)

var (
	vip6Addr       = netip.MustParseAddr("2001:db8:0:ff::10")
	routerClient6  = netip.MustParsePrefix("2001:db8:0:1::1/64")
	clientLink6    = netip.MustParsePrefix("2001:db8:0:1::2/64")
	clientPrefix6  = netip.MustParsePrefix("2001:db8:c::/48")
	spoofPrefix6   = netip.MustParsePrefix("2001:db8:f::/48") // nobody is there
	routerOutside6 = netip.MustParsePrefix("2001:db8:0:2::1/64")
	routerInside6  = netip.MustParsePrefix("2001:db8:0:3::fe/64") // with DSR only
)

// six gives 2001:db8:a:b::last.
func six(a, b, last int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8,
		4: byte(a >> 8), 5: byte(a), 6: byte(b >> 8), 7: byte(b), 14: byte(last >> 8), 15: byte(last)})
}

func clientAddr6(i int) netip.Addr  { return six(0xc, i, 1) }
func nodeOutside6(i int) netip.Addr { return six(0, 2, 0x10+i) }
func nodeInside6(i int) netip.Addr  { return six(0, 3, i) }
func serverAddr6(i int) netip.Addr  { return six(0, 3, 0x100+i) }
func gatewayAddr6(i int) netip.Addr { return six(0, 3, 0x200+i) }

func serverName6(i int) string { return serverName(i) + "-6" }

// speaksSix reports whether client i speaks IPv6. The pattern walks through all
// remainders, so that every kind of login is among them.
func (o Options) speaksSix(i int) bool { return o.IPv6 && i%sixEvery == i/sixEvery%sixEvery }

// client is the address that names client i.
func (o Options) client(i int) netip.Addr {
	if o.speaksSix(i) {
		return clientAddr6(i)
	}
	return clientAddr(i)
}

func (o Options) clients(from, n int) []netip.Addr {
	out := make([]netip.Addr, n)
	for i := range out {
		out[i] = o.client(from + i)
	}
	return out
}

// clientIndex is the inverse of client, for both families.
func clientIndex(a netip.Addr) int {
	if a.Is6() {
		b := a.As16()
		return int(b[6])<<8 | int(b[7])
	}
	b := a.As4()
	return (int(b[2])-16)*250 + int(b[3]) - 1
}

// vips are the lab's virtual addresses, IPv4 first.
func (o Options) vips() []netip.Addr {
	if o.IPv6 {
		return []netip.Addr{vipAddr, vip6Addr}
	}
	return []netip.Addr{vipAddr}
}

// family is one of the two halves of the plan. Indices count from 1.
type family struct {
	vip                     netip.Addr
	vipName                 string
	routerClient, client    netip.Prefix // the link between them
	clients, spoofed        netip.Prefix
	routerOutside           netip.Prefix
	routerInside            netip.Prefix
	nodeOutside, nodeInside func(int) netip.Addr
	server, gateway         func(int) netip.Addr
	serverName              func(int) string
	bits                    int // of every link
}

var (
	family4 = family{
		vip: vipAddr, vipName: vipName, routerClient: routerClient, client: clientLink, clients: clientPrefix, spoofed: spoofPrefix,
		routerOutside: routerOutside, routerInside: routerInside, nodeOutside: nodeOutside, nodeInside: nodeInside,
		server: serverAddr, gateway: gatewayAddr, serverName: serverName, bits: 24,
	}
	family6 = family{
		vip: vip6Addr, vipName: vip6Name, routerClient: routerClient6, client: clientLink6, clients: clientPrefix6, spoofed: spoofPrefix6,
		routerOutside: routerOutside6, routerInside: routerInside6, nodeOutside: nodeOutside6, nodeInside: nodeInside6,
		server: serverAddr6, gateway: gatewayAddr6, serverName: serverName6, bits: 64,
	}
)

// families are those of this lab.
func (o Options) families() []family {
	if o.IPv6 {
		return []family{family4, family6}
	}
	return []family{family4}
}

// gatewayOf says which floating gateway server i uses: they are spread.
func (f family) gatewayOf(i, gateways int) netip.Addr { return f.gateway(1 + (i-1)%gateways) }

// prefixes of one place in every family of the lab.
func (o Options) prefixes(pick func(family) netip.Prefix) (out []netip.Prefix) {
	for _, f := range o.families() {
		out = append(out, pick(f))
	}
	return out
}

// on gives the prefixes of a numbered place's addresses.
func (o Options) on(i int, pick func(family) func(int) netip.Addr) []netip.Prefix {
	return o.prefixes(func(f family) netip.Prefix { return netip.PrefixFrom(pick(f)(i), f.bits) })
}
