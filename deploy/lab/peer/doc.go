// Package peer holds the embedded peers of the laboratory: an IKEv2-shaped
// responder that keeps its own SA state and refuses what it never saw, many
// clients in one process that count every packet, and a source of forged
// traffic.
//
// They speak the shape of IKEv2 (RFC 7296), of its UDP encapsulation (RFC 3948)
// and of ESP (RFC 4303) without any cryptography: what a load balancer sees is
// real, what it cannot see is a small record in the clear.
//
// Each peer is a process in its own namespace, told what to do by a JSON file
// and asked how it fares over HTTP on a unix socket, which is a path and so
// seen from every namespace.
package peer
