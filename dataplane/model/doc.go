// Package model is the packet path in plain Go: [Decide] says what becomes of one
// frame. It is the oracle of the C program, the data plane of the virtual
// cluster, and the engine of `vpnlb explain`. It is written to be read, not to be
// fast, and it holds no state: what the program would remember is in the
// [Decision], and the caller puts it where it belongs.
//
// # The path, to the byte
//
// In this order:
//
//  1. Less than 14 bytes: PassOther. The physical interface is not known:
//     PassForeignMAC. With ethertype 0x8100 or 0x88a8 the VLAN ID (12 bits of the tag)
//     names a VLAN device of that ethertype on that interface, which stands for it from here
//     on (ID 0 is a priority and no VLAN: the interface itself, IEEE 802.1Q section 6.9); no
//     such device, or less than 18 bytes: PassNotIP. One tag is read, not two. A frame of a
//     bond comes in on a member; VLAN devices are the bond's, and so is the way out. The
//     destination MAC is not that of the interface, or of the VLAN device:
//     PassForeignMAC.
//  2. The ethertype (behind the tag) is neither IPv4 nor IPv6: PassNotIP.
//  3. Less than 20 (IPv6: 40) bytes, or the version is not 4 (6): PassOther.
//  4. The destination is a VIP: inbound. Else the source is a backend without DSR:
//     return. Else, an ICMP error (below) of any source which quotes a packet of ours
//     to a backend without DSR: return, of that backend. Else PassOther. So a DSR
//     server's own packets are the kernel's.
//  5. For inbound, and return by source: IPv4: IHL below 5, total length below the
//     header's or above what the frame holds: DropMalformed. IPv6: payload length
//     above what the frame holds: DropMalformed. (A stranger's error whose lengths do
//     not add up quotes nothing: PassOther.) Bytes of the frame after the packet are
//     padding: never read, never removed. All lengths below are those of the IP packet;
//     the UDP length field is not compared with anything.
//  6. IPv6 extension headers: hop-by-hop (0) and destination options (60) are skipped,
//     (byte 1 + 1) * 8 bytes each; a fragment header (44) gives offset, more and ID,
//     and is skipped. A second fragment header, a header that is not wholly inside the
//     packet, a seventh header (the fragment header counts): the packet is malformed,
//     whatever its protocol. Any other next header is the protocol. Behind a fragment
//     header with an offset that is not 0 the walk ends: its next header is the protocol,
//     whatever it is. A fragment header with offset 0 and no more is a whole packet.
//
// Fragments of UDP, of ESP, and of TCP where it is ours, are malformed: with more to
// come and a length that is no multiple of 8; without any byte; reaching beyond 65535
// (offset in bytes + length). The length is what follows all headers of IP. This is
// judged before any port.
//
// Ours are UDP 500 and 4500 of every VIP and, where the VIP is pass-through, TCP 443.
// UDP and ESP are of class IKE, TCP of class TCP.
//
// # Inbound
//
//  1. The source is a backend (DSR or not): DropHairpin.
//  2. Malformed by rule 6 or by the fragment rule: DropMalformed.
//  3. A later fragment (offset not 0) of UDP, ESP or, pass-through, TCP: forwarded; of
//     anything else: PassLocalVIP.
//  4. UDP: less than 8 bytes: DropMalformed. To 500 or 4500: see package ike;
//     malformed: DropMalformed; other major version: DropNotIKEv2; else
//     forwarded. Any other port: PassLocalVIP.
//  5. ESP: forwarded, however short.
//  6. TCP, pass-through: less than 20 bytes: DropMalformed; to 443: forwarded; else
//     PassLocalVIP. TCP of another VIP: PassLocalVIP.
//  7. An ICMP error that quotes a packet of ours from this VIP: see ICMP errors.
//  8. PassLocalVIP.
//
// What is forwarded by 3 to 6 is counted against the source limit first, if the set
// has one, by client key: above it DropSourceLimit.
//
// The client key is the source, IPv6 cut to the VIP's ClientBits. Records, Maglev and
// the limit know clients by it. An opening is an IKE message with an opening exchange,
// and every piece of a fragmented datagram, the first too; of TCP every packet is one.
// A record counts if its server is one of this VIP whose stance in the record's class is
// Take, Keep or Leave. The server is chosen by the table beside table.Stance:
//
//   - The record of the class counts, and not (its server leaves and the packet is an
//     opening): ForwardAffinity. It sets the record's client tick, whatever the next hop
//     says then.
//   - It counts, but that: Maglev, ForwardReopened.
//   - It does not count, but the record of the other class does, its server may take this
//     class (Take or Keep), and it is not a packet of TCP to a server with DSR:
//     ForwardOtherClass, no tick.
//   - Else Maglev, ForwardMaglev.
//   - Nobody is in Maglev's table: DropNoBackend.
//
// # Return
//
//  1. Service: UDP from 500 or 4500, ESP, TCP from 443 where the backend's VIP is
//     pass-through, a later fragment of these protocols (TCP: pass-through only), an
//     ICMP error which quotes a packet of ours to this backend; and what 3 drops. A
//     later fragment whose first was "other" is other, too. Not service:
//     PassBackendOther.
//  2. The destination is in NotReturn, a VIP or a backend: PassNotReturn.
//     This comes before every drop: what a server says to a member or inside
//     (an ICMP error about a probe, IKEv1 with a neighbour) is not ours to judge.
//  3. UDP of less than 8 bytes, TCP of less than 20 (pass-through), from whatever port;
//     malformed by package ike, by rule 6 above or by the fragment rule: DropMalformed;
//     another major version: DropNotIKEv2.
//  4. Forwarded: ForwardReturn; a later fragment ForwardReturnFragment if its first
//     was seen, else ForwardReturnUnknown; ICMP ForwardReturnICMPError.
//
// First fragments (offset 0, more to come) of UDP, of ESP, and of TCP where it is ours,
// are remembered: "other" if not service, "return" if well-formed service, wherever
// they go then. The protocol in the memory's key is the one that was found.
//
// A forwarded return packet of the recorded server that is evidence (below) sets the
// record's server tick, whatever the next hop says; a keepalive sets the client tick.
// Anything else sets none: a forged request draws it.
//
// # Evidence
//
// Evidence is taken from ForwardReturn: of UDP see package ike; of ESP, at least 20 bytes
// behind all headers of IP, it is Confirmed; of TCP (data offset field at least 5, header
// inside the packet, bytes after it, neither SYN nor RST) it is Confirmed and an opening.
// Messages of an IKE SA (see ike.Datagram.OfSA) prove nothing, and set no tick, where the
// last one of that SA went to another client key within ten minutes (Env.Elsewhere, which
// is asked once for each of them, because asking remembers). It is asked for where there is no record of the class that
// counts; where the record names this server with a lower level; where it names another
// one, this one may take, and the evidence is an opening (whether the other may be
// replaced is for the agreement to say: this node may not have heard yet). A server whose
// stance is neither Take, Keep nor Leave teaches nothing: a record of it would not
// count, and would be asked for again for ever.
//
// Of a DSR server no reply is seen. A whole or first inbound packet of class IKE that is
// forwarded to one is a sighting, whatever the next hop says: of level EarnedSK, an IKE
// message with a responder SPI that is not 0 and SK or SKF as first payload; of level
// Confirmed, only where the record of the class counts and names this server, ESP in
// UDP of at least 20 bytes, and ESP itself of any length. Nothing is to be learned where
// the record has that level already, or names another server (never replaced). Else
// Decision.Sighting is set, and if Env.Sighted says that there was one of the same key
// and level long enough before (one to sixty seconds; the program: at least one tick of
// its clock), Evidence, not an opening. Such ESP of a client without a record of the class that
// counts is no sighting, but the second packet after a sighting of EarnedSK: Evidence of
// that level. (A login with a certificate has one protected request, and no other for hours.)
// A first fragment of such an IKE message is Evidence at once: routers send the pieces of a
// datagram to a node by their addresses, the tunnel that follows to another by its ports.
//
// # ICMP errors
//
// An ICMP error is, in IPv4, protocol 1, not a fragment, at least 8 + 20 bytes, type 3,
// 11 or 12, and the quoted packet has version 4 and IHL of at least 5; in IPv6 protocol
// 58, not a fragment, at least 8 + 40 bytes, type 1 to 4, and the quoted packet has
// version 6. The quoted packet is ours if it is ESP, UDP from or to 500 or 4500, TCP
// from or to 443 (pass-through), the ports' 4 bytes being quoted, or a later fragment of
// these protocols, whose ports do not count. In IPv6 the quoted next header is the
// protocol itself, or a fragment header (8 bytes, quoted whole) directly behind the
// quoted header, with the protocol behind it. Inbound, the quoted source is the VIP and
// its port counts; return, the quoted destination is the backend and its port counts.
//
// Inbound, the server is that of the quoted destination as client, in the quoted class,
// chosen as for a packet that is no opening (of TCP: one that is), without tick,
// sighting and source limit: ForwardICMPError, or DropNoBackend. The outer destination
// and the quoted source become the server's (DSR: nothing is changed). Return: outer
// source and quoted destination become the VIP's. The quoted IPv4 header's sum is
// mended, then the quoted UDP sum (if not 0; a result of 0 is written 0xffff) or TCP sum
// where its 2 bytes are quoted and the quoted packet is not a later fragment, then the
// ICMP sum for all of it (IPv6: the outer address too).
//
// # Forwarding, both ways
//
//  1. TTL (hop limit) 0 or 1: AnswerExpired, or DropTTL. (Not with DSR.)
//  2. A return packet that the FIB does not forward (to an address of the node itself, or no
//     route at all): PassNotForwarded, as it came. No route, or with DSR a next hop that is not the server itself: DropNoRoute. DSR
//     and no neighbour: DropNoNeighbour.
//  3. Total length (IPv6: with the header) above the route's MTU: IPv4 without DF, and
//     not DSR: PassMustFragment, rewritten as in 4. Else AnswerTooBig, or DropTooBig.
//  4. The address is rewritten, with the IPv4 header sum and the UDP sum (offset 0, not
//     0; a result of 0 is written as 0xffff) or TCP sum (offset 0, only where the TCP
//     header's first 18 bytes are inside the packet), by RFC 1624, equation 3. With DSR
//     nothing is rewritten. Partial sums: see below; may be DropPartialSum.
//  5. No neighbour: PassNoNeighbour. The exit cannot transmit: PassCannotTransmit (DSR:
//     DropNoRoute). The kernel forwards these and what must be fragmented, so it takes
//     one off the TTL: the program does not, else a TTL of 2 would make the kernel answer
//     the wrong host. The frame keeps its MACs and its tag.
//  6. One off the TTL (not DSR), new MACs, out of the exit; the tag of the frame becomes
//     the exit's: none, or 0x8100 (802.1ad: 0x88a8) and its VLAN ID, priority 0.
//
// On an interface that may hand over partial sums, a UDP or TCP checksum that equals the
// folded, not complemented sum of the pseudo-header (UDP: with the UDP length field; TCP:
// with the length of the IP payload after extension headers, only for a whole packet) is
// partial, unless it is right: one complete sum in 65536 looks so by chance. Of a whole packet
// of at most 10240 bytes after all headers (UDP: whose length field says so) the payload is added up;
// where that comes out as 0xffff the sum is complete. Where the packet is passed by 3 or 5, or came in on
// an interface in generic mode (its frames keep the kernel's mark wherever they go), it stays the
// pseudo-header's sum, of the new address (DSR: as it is), because somebody completes it;
// else IPv4 UDP is written as 0 (RFC 768 allows that), and all others are DropPartialSum.
// With DSR, which passes nothing, a partial sum is treated the same: IPv4 UDP written as 0,
// others dropped, before the exit is judged.
//
// # Answers
//
// Sent back out of the interface the frame came in on (the bond of a member), MACs swapped, tag and ethertype
// kept (the frame's own bytes). Not about ICMP errors that are relayed; about IPv4 later
// fragments; about a source that is 0 in its first byte, loopback (127/8), multicast or
// above (first byte 224 and more), IPv6: unspecified, loopback (::1), multicast (ff); only
// where that interface (the VLAN device, if tagged) can transmit; not beyond the rate
// (Env.Answers, which is asked last, because asking counts).
//
// From the VIP (inbound: the destination; return: the VIP of the backend) to the packet's
// source. The quote is the packet as it came, its first min(total length, 512) bytes
// rounded down to a multiple of 4. IPv4: 20 bytes of header (TOS 0, ID 0, DF, TTL 64), 8
// of ICMP: 11/0, or 3/4 with the MTU in the last two bytes (RFC 1191). IPv6: 40 bytes
// (traffic class and flow label 0, hop limit 64), 8 of ICMPv6: 3/0, or 2/0 with the MTU in
// the last four (RFC 4443). Both sums are written from scratch; an ICMP sum that comes
// out as 0 stays 0.
package model
