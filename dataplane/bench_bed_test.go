package dataplane

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// The bed's network: one leg, on-link servers, all clients behind one router.
// Clients are numbered in ranges that nobody routes: nothing leaves the machine.
const (
	bedServers  = 16 // of each family: slots 1 to 16, and 17 to 32
	bedLeg      = "leg"
	bedAddress4 = "198.51.100.1/24"
	bedAddress6 = "2001:db8:ffff:1::1/64"
	bedRouter4  = "198.51.100.254"
	bedRouter6  = "2001:db8:ffff:1::254"
	bedVIP4     = "203.0.113.10"
	bedVIP6     = "2001:db8:ffff:2::10"

	// Clients are counted up from these words: of IPv4 the whole address, of IPv6
	// the third and fourth group, behind 2001:db8.
	firstKnown4, firstUnknown4 = 0xf0000000, 0xf8000000
	firstKnown6, firstUnknown6 = 0x00000000, 0x80000000
)

var bedMAC = [6]byte{0x02, 0, 0, 0, 0x01, 0x01}

func bedServer(family, i int) netip.Addr {
	if family == 4 {
		return netip.AddrFrom4([4]byte{198, 51, 100, byte(11 + i)})
	}
	a := netip.MustParseAddr("2001:db8:ffff:1::").As16()
	a[15] = byte(11 + i)
	return netip.AddrFrom16(a)
}

// clientAddr is the client with this number.
func clientAddr(family int, word uint32) netip.Addr {
	if family == 4 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, word)))
	}
	a := [16]byte{0x20, 0x01, 0x0d, 0xb8}
	binary.BigEndian.PutUint32(a[4:], word)
	a[15] = 1
	return netip.AddrFrom16(a)
}

// bed is a plane whose tables hold a number of clients, in a namespace of its own.
type bed struct {
	*Plane
	clients int
	leg     uint32
	fill    string // how the tables are filled now
	index   uint64
}

// newBed makes the plane; the tables are filled when a case wants it.
func newBed(t testing.TB, clients int) *bed {
	newNamespace(t)
	leg := newVeth(t, bedLeg, bedLeg+"p", bedMAC)
	bedNetwork(t, leg)
	p, err := New(Config{PinDir: newBPFFS(t), Mode: Native, MaxClients: uint32(clients), bench: true,
		Interfaces: []InterfaceConfig{{Name: bedLeg}}}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	attachPlane(t, p)
	b := &bed{Plane: p, clients: clients, leg: uint32(leg.Attrs().Index)}
	// As of a network card: complete checksums, and XDP_TX. Nobody refreshes this,
	// because Run does not run.
	v := bpf.PlaneInterface{Ifindex: b.leg, Mtu: 1500, Mac: bedMAC, Flags: flagTransmit | flagXDPTX | flagSeveral, Lower: b.leg, Master: b.leg}
	if err := p.coll.Maps["interfaces"].Put(b.leg%interfacePlaces, &v); err != nil {
		t.Fatal(err)
	}
	return b
}

// bedNetwork gives the leg its addresses, and permanent neighbours: the FIB answers
// as on a node.
func bedNetwork(t testing.TB, leg netlink.Link) {
	t.Helper()
	for _, text := range []string{bedAddress4, bedAddress6} {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(leg, a); err != nil {
			t.Fatal(err)
		}
	}
	routers := []netip.Addr{netip.MustParseAddr(bedRouter4), netip.MustParseAddr(bedRouter6)}
	for i, r := range routers {
		bedNeighbour(t, leg, r, 0xfe)
		family := []int{4, 6}[i]
		for n := range bedServers {
			bedNeighbour(t, leg, bedServer(family, n), byte(n))
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: leg.Attrs().Index, Gw: r.AsSlice(),
			Dst: &net.IPNet{IP: make(net.IP, r.BitLen()/8), Mask: net.CIDRMask(0, r.BitLen())}}); err != nil {
			t.Fatal(err)
		}
	}
}

func bedNeighbour(t testing.TB, leg netlink.Link, a netip.Addr, last byte) {
	t.Helper()
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: leg.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT,
		IP: a.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 2, last}}); err != nil {
		t.Fatal(err)
	}
}

func bedSet(index uint64) *table.Set {
	s := &table.Set{ClusterID: testCluster, Index: index, Generation: 1, HashKey: [16]byte{1, 2, 3}, TableSize: MaxTableSize,
		VIPs: []table.VIP{{Index: 0, Addr: netip.MustParseAddr(bedVIP4), Passthrough: true},
			{Index: 1, Addr: netip.MustParseAddr(bedVIP6), ClientBits: 64, Passthrough: true}},
		NotReturn: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:ffff::/48")}}
	for i := range 2 * bedServers {
		family := 4 + i/bedServers*2
		s.Backends = append(s.Backends, table.Backend{Slot: table.Slot(i + 1), ID: uint32(100 + i), VIP: uint8(i / bedServers),
			Addr: bedServer(family, i%bedServers), Weight: 100, Stance: [table.Classes]table.Stance{table.Take, table.Take}})
	}
	return s
}

// Fills: all clients recorded at all servers, evenly; or all at the first one, which
// is the one that sends the replies.
const (
	fillSpread = "spread"
	fillFirst  = "first"
)

// entries are the records of both families.
func (b *bed) entries(fill string) iter.Seq[table.Entry] {
	return func(yield func(table.Entry) bool) {
		for family := 4; family <= 6; family += 2 {
			first := uint32(firstKnown4)
			if family == 6 {
				first = firstKnown6
			}
			for i := range b.clients {
				slot := 1 + (family-4)/2*bedServers
				if fill == fillSpread {
					slot += i % bedServers
				}
				key := table.Key{Client: clientAddr(family, first+uint32(i)).As16(), Class: table.IKE}
				if family == 6 {
					clear(key.Client[8:])
				}
				if !yield(table.Entry{Key: key, Slot: table.Slot(slot), State: table.Confirmed}) {
					return
				}
			}
		}
	}
}

// use brings the tables to a fill.
func (b *bed) use(t testing.TB, fill string) {
	t.Helper()
	if b.fill == fill {
		return
	}
	b.index++
	if err := b.Resync(bedSet(b.index), b.entries(fill)); err != nil {
		t.Fatal(err)
	}
	if s := b.Status(); s.Entries4 != b.clients || s.Entries6 != b.clients {
		t.Fatalf("tables hold %d and %d records, want %d of each", s.Entries4, s.Entries6, b.clients)
	}
	b.fill = fill
}

// share says whether the clients share the next hop of their replies: whether
// neither not_return nor a route of its own reaches into where they are. Those of
// IPv6 lie in one /32 with the servers here, so the program is told otherwise.
func (b *bed) share(t testing.TB, shared bool) {
	t.Helper()
	var none, routed placeBits
	if !shared {
		routed.setAll()
	}
	for place := range uint32(4) {
		if err := b.coll.Maps["not_return_places"].Put(place, &none.PlanePlaces); err != nil {
			t.Fatal(err)
		}
	}
	for place := range uint32(2) {
		if err := b.coll.Maps["routed_places"].Put(place, &routed.PlanePlaces); err != nil {
			t.Fatal(err)
		}
	}
	b.control.forgetNextHops()
}

// tableBytes is what the kernel holds for a family's table, a client.
func (b *bed) tableBytes(t testing.TB, family int) float64 {
	t.Helper()
	info, err := b.coll.Maps[fmt.Sprintf("affinity%d", family)].Info()
	if err != nil {
		t.Fatal(err)
	}
	bytes, ok := info.Memlock()
	if !ok {
		t.Skip("this kernel does not say how large a map is")
	}
	return float64(bytes) / float64(b.clients)
}

func vipOf(family int) netip.Addr {
	if family == 4 {
		return netip.MustParseAddr(bedVIP4)
	}
	return netip.MustParseAddr(bedVIP6)
}
