// Package model is the packet path in plain Go: [Decide] says what becomes of one
// frame. It is the oracle of the C program, the data plane of the virtual
// cluster, and the engine of `vpnlb explain`. It is written to be read, not to be
// fast, and it holds no state: what the program would remember is in the
// [Decision], and the caller puts it where it belongs.
//
// # The path, IPv4, to the byte
//
// In this order:
//
//  1. The destination MAC is not the interface's own: PassForeignMAC.
//  2. The ethertype is not IPv4: PassNotIP.
//  3. Less than 20 bytes, or the version is not 4: PassOther.
//  4. The destination is a VIP: inbound. Else the source is a backend: return.
//     Else PassOther.
//  5. For both: IHL below 5, total length below the header's or above what the
//     frame holds: DropMalformed. Bytes of the frame after the total length are
//     padding: never read, never removed. All lengths below are those of the IP
//     packet; the UDP length field is not compared with anything.
//
// Inbound:
//
//  1. The source is a backend: DropHairpin.
//  2. A later fragment (offset not 0) of UDP or ESP: forwarded; of anything else:
//     PassLocalVIP.
//  3. UDP: less than 8 bytes: DropMalformed. To 500 or 4500: see package ike;
//     malformed: DropMalformed; other major version: DropNotIKEv2; else
//     forwarded. Any other port: PassLocalVIP.
//  4. ESP: forwarded, however short.
//  5. ICMP of type 3, 11, 12 whose quoted packet is IPv4, comes from this VIP, and
//     is ESP, or is UDP at offset 0 from port 500 or 4500: DropICMPError.
//  6. PassLocalVIP.
//
// An opening is an IKE message with an opening exchange, and every piece of a
// fragmented datagram, the first too. The server is chosen by the table beside
// table.Stance: ForwardAffinity, ForwardReopened, ForwardMaglev or DropNoBackend.
// ForwardAffinity sets the record's client tick, whatever the next hop says then.
//
// Return:
//
//  1. Service: UDP from 500 or 4500, ESP, a later fragment of UDP or ESP, an ICMP
//     error (3, 11, 12) whose quoted packet goes to this backend and is ESP, or
//     UDP at offset 0 to 500 or 4500. A later fragment whose first was "other" is
//     other, too. Not service: PassBackendOther.
//  2. The destination is in NotReturn, a VIP or another backend: PassNotReturn.
//     This comes before every drop: what a server says to a member or inside
//     (an ICMP error about a probe, IKEv1 with a neighbour) is not ours to judge.
//  3. UDP of less than 8 bytes, or malformed by package ike: DropMalformed; another
//     major version: DropNotIKEv2; ICMP: DropICMPError.
//  4. Forwarded: ForwardReturn; a later fragment ForwardReturnFragment if its first
//     was seen, else ForwardReturnUnknown.
//
// First fragments (offset 0, more to come) of UDP and ESP are remembered: "other"
// if not service, "return" if well-formed service, wherever they go then. A
// forwarded return packet of the recorded server sets the record's server tick,
// whatever the next hop says. Evidence is taken from ForwardReturn of UDP, see
// [Decision.Evidence]; a server whose stance is neither Take, Keep nor Leave teaches
// nothing: a record of it would not count, and would be asked for again for ever.
//
// Forwarding, both ways:
//
//  1. TTL 0 or 1: DropTTL.
//  2. No route: DropNoRoute. Total length above the route's MTU: DropTooBig,
//     whether it may be fragmented or not.
//  3. The address is rewritten, with the IP checksum and, in UDP at offset 0 with a
//     checksum that is not 0, the UDP checksum (RFC 1624, equation 3; a result of 0
//     is written as 0xffff). On an interface that may hand over partial sums a UDP
//     checksum that equals the folded, not complemented sum of the pseudo-header
//     (with the UDP length field) is written as 0, which IPv4 allows (RFC 768); where
//     step 4 passes the packet it stays the pseudo-header's sum, of the new address,
//     because the kernel completes it.
//  4. No neighbour: PassNoNeighbour. The exit cannot transmit: PassCannotTransmit.
//     The kernel forwards these, so it takes one off the TTL: the program does
//     not, else a TTL of 2 would make the kernel answer the wrong host.
//  5. One off the TTL, new MACs, out of the exit.
package model
