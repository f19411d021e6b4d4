// Package sstp ends TLS for SSTP on this node: it accepts TCP 443 of a VIP,
// asks the node which server the client belongs to, shows the certificate that
// this server's crypto binding expects ([MS-SSTP] 3.3.3), checks the request
// head, and relays to the server, in plain HTTP or in TLS again.
//
// It decides nothing about servers: Deps.Choose does, from the client's address
// alone, before a byte of TLS was read. It changes nothing that the peers say
// to each other but the request and response heads, which it writes canonically;
// what follows it relays byte for byte and watches, read only.
//
// A Desired is immutable; Apply swaps it without touching connections that stand.
// All methods are safe for concurrent use.
package sstp
