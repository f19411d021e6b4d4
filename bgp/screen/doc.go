// Package screen stands between the routers and the BGP library: no byte that a
// router sends reaches the library. The screen holds the TCP session with each
// router, reads and judges each message, and writes to the library only OPEN,
// KEEPALIVE and ROUTE-REFRESH messages of its own making. Routes that a router
// sends are counted and dropped.
//
// The codec (message.go, open.go, update.go) and the state machine of one
// connection (machine.go) are pure. Each neighbour has one goroutine that owns its
// state (neighbour.go).
package screen
