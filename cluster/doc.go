// Package cluster is who is in the cluster right now and what nodes tell each
// other without agreeing on it: soft state, by gossip.
//
// Membership wraps memberlist. What it carries are hints: a node's status and
// its observations of the backends, signed with the node's key, numbered, and
// fresh by the receiver's own clock. A hint never changes who is a member (the
// committed member list says that), and nothing may go wrong for clients when
// all hints are lost.
//
// The folder's sub-packages are state (what is agreed), health (observations
// and verdicts), affinity (which client went where) and transport (connections
// between nodes).
package cluster
