// Package memnet is a network in memory, for clusters that run inside
// testing/synctest: stream connections (for cluster/transport) and a memberlist
// transport, both of which can be cut between any two addresses.
//
// It drops where a real network drops and refuses where a real network refuses;
// it never blocks a sender because a receiver is slow or dead. It is used by
// tests only.
package memnet
