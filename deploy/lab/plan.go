package lab

import (
	"fmt"
	"net/netip"
	"path/filepath"
)

// The address plan. Only documentation and benchmarking ranges.
//
//	client 198.18.0.2 (clients 198.18.16.0/20 on lo) -- 198.18.0.1 router
//	router 192.0.2.1 == nodes' eth0 192.0.2.11.. (one segment, bridge in the router)
//	nodes' eth1 198.51.100.1.. == servers 198.51.100.101.. (one segment, namespace "inside")
//	floating gateways 198.51.100.201..; VIP 203.0.113.10
//	servers that answer by DSR use the router's leg 198.51.100.254
//	real tunnels: inner addresses of clients 198.19.<server>.0/20 pools, of servers 198.19.255.1
const (
	routerASN   = 64999
	nodeASNBase = 65010

	vipName = "vpn"

	clusterPort = 7950
	gossipPort  = 7946
)

var (
	vipAddr       = netip.MustParseAddr("203.0.113.10")
	routerClient  = netip.MustParsePrefix("198.18.0.1/24")
	clientLink    = netip.MustParsePrefix("198.18.0.2/24")
	clientPrefix  = netip.MustParsePrefix("198.18.0.0/16")
	spoofPrefix   = netip.MustParsePrefix("198.18.128.0/17") // nobody is there
	routerOutside = netip.MustParsePrefix("192.0.2.1/24")
	routerInside  = netip.MustParsePrefix("198.51.100.254/24") // with DSR only
	innerServer   = netip.MustParseAddr("198.19.255.1")        // behind every real server
	innerPrefix   = netip.MustParsePrefix("198.19.255.0/24")
)

// clientAddr is the IPv4 address of client i (from 0): 250 to a /24, from 198.18.16.1.
func clientAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(16 + i/250), byte(1 + i%250)})
}

// Nodes, servers and gateways are counted from 1.
func nodeName(i int) string        { return fmt.Sprintf("n%d", i) }
func serverName(i int) string      { return fmt.Sprintf("s%d", i) }
func nodeOutside(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)}) }
func nodeInside(i int) netip.Addr  { return netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}) }
func serverAddr(i int) netip.Addr  { return netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + i)}) }
func gatewayAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(200 + i)}) }
func serverPool(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(16 * (i - 1)), 0}), 20)
}

// Roles of the namespaces that are no node and no server.
const (
	roleClient = "client"
	roleRouter = "router"
	roleInside = "inside" // the switch between nodes and servers
)

// Where a lab lives. /run: gone after a reboot, like the namespaces.
const (
	runDir       = "/run/vpnlb-lab"
	netnsDir     = "/run/netns"
	nsPrefix     = "vpnlb-"
	labEnviron   = "VPNLB_LAB" // in the environment of every process of a lab
	clientSocket = "clients.sock"
)

func labDir(name string) string        { return filepath.Join(runDir, name) }
func nsName(lab, role string) string   { return nsPrefix + lab + "-" + role }
func (l *Lab) ns(role string) string   { return nsName(l.st.Options.Name, role) }
func (l *Lab) path(e ...string) string { return filepath.Join(append([]string{l.dir}, e...)...) }
