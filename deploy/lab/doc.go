// Package lab builds the laboratory: a whole site in network namespaces that
// runs the real vpnlb binary between a router, IKEv2 servers and clients.
//
// A lab has a name; everything it makes carries it: namespaces
// "vpnlb-<name>-<role>", the directory /run/vpnlb-lab/<name> with the state
// file, the nodes' files, logs and sockets, and a bpffs below it. Down removes
// all of that, also after a crash of the process that made it.
//
// The life of a lab: Up builds it and starts everything, Open attaches another
// process to it, Run runs one failover drill, Down removes it; Demo is all of
// these in one. Peers (router, servers, clients) come in two kinds behind one
// interface: embedded ones, run by the binary itself through PeerMain, and
// real ones, FRR and strongSwan.
//
// It does not use ip, ethtool, sysctl or nft: links, routes, sysctls and
// offloads are set by netlink, /proc/sys and ioctl, so the demo needs no
// packages. It needs root.
package lab
