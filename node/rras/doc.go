// Package rras writes what an administrator has to run and to look at on one
// Windows server (RRAS) so that it serves SSTP behind a VIP: a PowerShell
// script, a checklist, and the steps of a change of certificate, one server
// after the other.
//
// It is pure: facts in, text out, no clock, no I/O. It touches no server; the
// balancer never has an account on one. Safe for concurrent use.
//
// Why a server needs telling at all: SSTP clients sign the SHA-256 of the TLS
// certificate they saw ([MS-SSTP] 2.2.7), and the server compares it with the
// hash in its registry ([MS-SSTP] 3.3.3). Where TLS ends on a node, that is the
// node's certificate. A mismatch shows only after the user's login.
//
// What Windows does beyond its published documents was not tried on a Windows
// server by this project; the text says "check this" in those places.
package rras
