// Package ike reads as much of IKEv2 as a packet forwarder may know: the header,
// whether a message opens a conversation, and what a server's message proves
// about its client. It reads nothing that is encrypted.
//
// The rules it states:
//
//   - A datagram is read by the server-side port: 500 carries IKE at once
//     (RFC 7296, section 2), 4500 carries a keepalive, ESP, or IKE after the
//     non-ESP marker (RFC 3948, sections 2.1 to 2.3). See [Classify].
//   - An opening is a message that a server without any state for the client may
//     receive: every exchange but those of an established IKE SA. Exchange types
//     nobody has numbered yet count as openings, so that a new kind of handshake
//     works. See [Exchange.Opening].
//   - Evidence is what a server sends only after a completed key exchange. An
//     IKE_SA_INIT response proves nothing: anyone gets one. See [Proof].
package ike
