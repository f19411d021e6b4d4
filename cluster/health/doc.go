// Package health observes the backends and turns what all nodes observed into
// one proposed verdict.
//
// A Prober asks every backend for a sign of life and dampens the answers into
// a local Opinion. An Observation carries those opinions to the other nodes; a
// Collector keeps the latest of each. Decide (on the leader) and Reach (on
// every node) are pure functions of such facts. Nothing here changes agreed
// state: Decide returns commands for somebody else to propose.
package health
