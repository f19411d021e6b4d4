//go:build vpnlb_other_schema

package dataplane

// schema of a binary that stands for a neighbouring version in the drill
// "upgrade": no pin of it has a name that a real version gives.
const schema = 1_000_000
