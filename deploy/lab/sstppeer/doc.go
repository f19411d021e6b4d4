// Package sstppeer holds what the laboratory needs to prove SSTP with a real
// client: a server in the shape of RRAS, with everything that its clients can
// tell, and what Debian's sstpc needs to run without the kernel's PPP.
//
// The server speaks SSTP ([MS-SSTP]) over TLS or, behind an offloader, over plain
// HTTP. It lets users in by MS-CHAPv2 (RFC 2759), derives the keys that
// MPPE would use (RFC 3079), and verifies the crypto binding of each call with
// them: its nonce, the hash of the certificate that the client saw, the compound
// MAC. As RRAS does, it lets a user with a wrong hash in first and aborts then.
// PPP (RFC 1661, 1332) ends in a TUN device, so that ping and iperf3 go through.
//
// sstpc starts /usr/sbin/pppd on a pseudo-terminal. Dial runs sstpc in a mount
// namespace where a script lies over that path that starts RunPPPD: the client's
// end of the same PPP, over the framing of RFC 1662, with a TUN device too.
//
// It is a laboratory's server: users share one password, the stream's bytes
// are not rationed, and nothing is written to disk.
package sstppeer
