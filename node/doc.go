// Package node puts the parts of one node together, in order: store, data
// plane, probers, gossip, catching up, routes; and takes them apart again in
// the reverse order. It is where the siblings of the level below meet: it
// renders the agreement into the data plane's words, carries evidence and
// activity to consensus, gathers the facts that pure functions decide on, and
// answers the admin API.
package node
