// Package gateway keeps the floating gateway addresses and the VIPs of this node:
// which of them the node holds, and how the segment learns of it.
//
// Servers send their replies to a floating gateway address; the cluster agrees
// on its owner, and the owner's [Keeper] holds the address on the inside
// interface and announces it. Two owners are harmless, because every node
// rewrites return traffic that reaches it; no owner is an outage. So what to do
// is decided by one pure function, [Decide], from [Facts]; the Keeper gathers
// the facts, asks it ten times a second, and mends the difference.
//
// [Assign] is the leader's side: who should own what.
package gateway
