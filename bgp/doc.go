// Package bgp tells the routers whether to use this node.
//
// Three parts, each usable alone:
//
//   - Decide is a pure function from Facts about this node and one VIP to a
//     Decision: an Action with a named Reason.
//   - Announcer turns decisions into advertisements over time: an improvement
//     is held up, a deterioration is immediate, and the own rate of change is
//     limited so that flap damping on the routers never hides a VIP.
//   - Speaker brings the advertisements to the routers. GoBGP is the one real
//     implementation; nothing of that library is visible outside this package.
//
// The package never looks at the data plane, the cluster or a clock of its own
// making: facts come in, advertisements go out. DESIGN.md has the reasons.
package bgp
