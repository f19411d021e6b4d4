// Package config reads the node file: what differs from node to node and needs
// a restart to change (addresses, interfaces, BGP neighbours, paths).
// Everything that the whole cluster shares is in the cluster spec instead.
//
// Reading is strict: an unknown key is a fault, and all faults of a file are
// reported at once, each with its line, its key and what to do about it.
package config
