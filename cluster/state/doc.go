// Package state is what the cluster agrees on: the shared vocabulary, the
// commands that change it, and the deterministic Machine that applies them.
//
// It is a leaf (standard library only). Nothing reachable from Machine.Apply
// reads a clock, random numbers, the environment or the order of a map.
package state
