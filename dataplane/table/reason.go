package table

// Reason names why a packet left the program as it did. Every packet is
// counted once, under one reason. The C list bpf/reasons.h is generated from
// this one (make generate); the order is the index into the counter array.
type Reason uint8

// Reasons. "pass" ones hand the frame to the kernel, "drop" ones end it, the
// others forward it.
const (
	ReasonNone            Reason = iota // never counted: a program error if it is
	PassForeignMAC                      // not addressed to this interface's MAC
	PassNotIP                           // ARP, LLDP, other families
	PassOther                           // not for a VIP, not from a backend
	PassLocalVIP                        // to a VIP, but not ours to forward (TCP 443 offload, ping)
	PassNotReturn                       // from a backend to a member, an inside prefix, another backend
	PassBackendOther                    // from a backend, but not a service of ours: routed by the kernel
	PassNoNeighbour                     // rewritten, next hop not resolved yet: the kernel resolves and forwards
	PassCannotTransmit                  // rewritten, the device cannot transmit XDP frames
	ForwardAffinity                     // to the recorded server
	ForwardMaglev                       // unknown client
	ForwardReopened                     // known client, recorded server may not take openings: by Maglev
	ForwardReturn                       // reply, source rewritten to the VIP
	ForwardReturnFragment               // later fragment of a reply, known from its first
	ForwardReturnUnknown                // later fragment of a reply, first one not seen: rewritten all the same
	DropMalformed                       // header lengths do not add up
	DropNotIKEv2                        // IKE with another major version
	DropNoBackend                       // UDP 500/4500 to a VIP with nothing to send it to
	DropTTL                             // expired
	DropTooBig                          // larger than the next hop's MTU
	DropICMPError                       // an ICMP error that quotes our traffic
	DropHairpin                         // a backend talks to a VIP
	DropPartialSum                      // checksum not complete and not repairable
	DropNoRoute                         // the FIB has no route for the rewritten packet
	DropTable                           // a map lookup that cannot fail failed
	ReasonCount
)

var reasonNames = [ReasonCount]string{
	"none", "pass_foreign_mac", "pass_not_ip", "pass_other", "pass_local_vip", "pass_not_return",
	"pass_backend_other", "pass_no_neighbour", "pass_cannot_transmit", "forward_affinity",
	"forward_maglev", "forward_reopened", "forward_return", "forward_return_fragment",
	"forward_return_unknown", "drop_malformed", "drop_not_ikev2", "drop_no_backend", "drop_ttl",
	"drop_too_big", "drop_icmp_error", "drop_hairpin", "drop_partial_sum", "drop_no_route",
	"drop_table",
}

// String gives the counter's name.
func (r Reason) String() string {
	if r < ReasonCount {
		return reasonNames[r]
	}
	return "invalid"
}
