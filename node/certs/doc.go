// Package certs reads the TLS certificates that a node shows to clients of SSTP:
// [Parse] makes a checked chain with its key of PEM text, and a [Book] keeps open
// what the agreement names, from sealed secrets or from files on the node.
//
// RRAS pins the SHA-256 of the certificate it expects clients to have seen
// ([MS-SSTP] 3.3.5.2.2), so the hash is part of the agreement, and a file that
// holds another certificate is never shown.
package certs
