package table

// Reason names why a packet left the program as it did. Every packet is
// counted once, under one reason. The C list bpf/reasons.h is generated from
// this one (make generate); the order is the index into the counter array.
type Reason uint8

// Reasons. "pass" ones hand the frame to the kernel, "drop" ones end it, "answer"
// ones send an ICMP error of our own back, the others forward it.
const (
	ReasonNone             Reason = iota // never counted: a program error if it is
	PassForeignMAC                       // not addressed to this interface's MAC
	PassNotIP                            // ARP, LLDP, a VLAN that is not ours
	PassOther                            // not for a VIP, not from a backend
	PassLocalVIP                         // to a VIP, but not ours to forward (TCP 443 offload, ping)
	PassNotReturn                        // from a backend to a member, an inside prefix, another backend
	PassNotForwarded                     // from a backend to where the routing table does not lead: an own address that is not agreed yet, or no route
	PassBackendOther                     // from a backend, but not a service of ours: routed by the kernel
	PassNoNeighbour                      // rewritten, next hop not resolved yet: the kernel resolves and forwards
	PassCannotTransmit                   // rewritten, the device cannot transmit XDP frames
	PassMustFragment                     // rewritten, larger than the next hop's MTU and allowed to be fragmented: the kernel does
	ForwardAffinity                      // to the recorded server
	ForwardMaglev                        // unknown client
	ForwardReopened                      // known client, recorded server may not take openings: by Maglev
	ForwardOtherClass                    // unknown in this class: to the server that the record of the other class names
	ForwardICMPError                     // an ICMP error about a reply, to the server that sent the reply
	ForwardReturn                        // reply, source rewritten to the VIP
	ForwardReturnFragment                // later fragment of a reply, known from its first
	ForwardReturnUnknown                 // later fragment of a reply, first one not seen: rewritten all the same
	ForwardReturnICMPError               // an ICMP error about a client's packet, to the client
	AnswerExpired                        // TTL or hop limit used up: time exceeded was sent
	AnswerTooBig                         // larger than the next hop's MTU: fragmentation needed or packet too big was sent
	DropMalformed                        // header lengths do not add up
	DropNotIKEv2                         // IKE with another major version
	DropNoBackend                        // our service at a VIP with nothing to send it to
	DropTTL                              // expired, and not to be answered
	DropTooBig                           // larger than the next hop's MTU, and not to be answered
	DropHairpin                          // a backend talks to a VIP
	DropPartialSum                       // checksum not complete and not repairable
	DropNoRoute                          // no route, or a router on the way to a DSR server
	DropNoNeighbour                      // a DSR server's MAC is not known: the kernel cannot help, the VIP is its own
	DropSourceLimit                      // a source above source_limit
	DropTable                            // a map lookup that cannot fail failed
	ReasonCount
)

var reasonNames = [ReasonCount]string{
	"none", "pass_foreign_mac", "pass_not_ip", "pass_other", "pass_local_vip", "pass_not_return", "pass_not_forwarded",
	"pass_backend_other", "pass_no_neighbour", "pass_cannot_transmit", "pass_must_fragment",
	"forward_affinity", "forward_maglev", "forward_reopened", "forward_other_class",
	"forward_icmp_error", "forward_return", "forward_return_fragment", "forward_return_unknown",
	"forward_return_icmp_error", "answer_expired", "answer_too_big", "drop_malformed",
	"drop_not_ikev2", "drop_no_backend", "drop_ttl", "drop_too_big", "drop_hairpin",
	"drop_partial_sum", "drop_no_route", "drop_no_neighbour", "drop_source_limit", "drop_table",
}

// String gives the counter's name.
func (r Reason) String() string {
	if r < ReasonCount {
		return reasonNames[r]
	}
	return "invalid"
}
