// Package raft is durable agreement: it replicates state.Command between the
// nodes of a cluster and nothing else.
//
// A Replica owns one hashicorp/raft instance over a bbolt store, feeds
// committed entries to a state.Machine and hands out its immutable Views. Any
// node may Propose: the replica numbers the command, forwards it to the leader
// and repeats it under the same number until it is answered, so that a command
// is applied once however often leadership moves.
//
// Losing raft never means losing the state: whatever goes wrong (a hung or
// full disk, an entry this binary does not know), the replica parks. It fences
// itself off from its peers, keeps serving the last View, and comes back by a
// restart of the process.
package raft
