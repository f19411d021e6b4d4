package health

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Target is one backend to probe.
type Target struct {
	Backend state.BackendID
	Addr    netip.Addr
	SSTP    *SSTPCheck // nil: its VIP has no SSTP. Not changed once given
}

// SSTPCheck says how to check SSTP of a backend: as the clients of its VIP, or
// the relay of the nodes, will meet it.
type SSTPCheck struct {
	TLS  bool   // false: plain HTTP, as the server is told where TLS ends on the nodes
	Port uint16 // TCP
	// Leaf is the SHA-256 of the certificate (DER) that the server must show;
	// zero: any, because TLS is between it and its clients.
	Leaf     [32]byte
	LeafName string // of that certificate, for a person
	// Deep is how often the cluster makes a call of a server, one node in turn;
	// 0: never. A call takes a port of the server for a moment.
	Deep time.Duration
	// DeepVotes: calls that fail count against the server. Only where connections
	// end on a node: in pass-through a verdict down would cut those that stand.
	DeepVotes bool
}

// TargetsOf lists what to probe: every backend of the spec, removed ones that
// are still named included (their entries are voided by a verdict as well).
func TargetsOf(s *state.Spec) []Target {
	ts := make([]Target, 0, len(s.Backends))
	for i := range s.Backends {
		b := &s.Backends[i]
		ts = append(ts, Target{Backend: b.ID, Addr: b.Addr, SSTP: checkOf(s, b)})
	}
	return ts
}

// passPort is what the packet path passes through, whatever port a server has.
const passPort = 443

// deepFormat is the command format of the first version that makes calls and
// knows their notes: an observation with one is unreadable to older members.
const deepFormat = 3

// checkOf is how SSTP of a server is checked; nil: not. Servers that an
// administrator has set aside get no calls.
func checkOf(s *state.Spec, b *state.Backend) *SSTPCheck {
	v, ok := s.VIPByID(b.VIP)
	if !ok || v.SSTP == state.SSTPOff {
		return nil
	}
	c := &SSTPCheck{TLS: v.SSTP != state.SSTPOffload, Port: passPort, DeepVotes: v.SSTP.Ends()}
	if v.SSTP.Ends() {
		c.Port = s.SSTPPort(b)
	}
	if place, ok := s.CertificateByName(v.CertificateOf(b)); ok && v.SSTP == state.SSTPReencrypt {
		c.Leaf, c.LeafName = place.SHA256, place.Name
	}
	_, lowest := s.LowestFormat()
	if lowest >= deepFormat && (b.Admin == state.AdminEnabled || b.Admin == state.AdminDrain) {
		c.Deep = DeepInterval
	}
	return c
}

// Timing is how often to ask and how many equal answers make an opinion.
type Timing struct {
	Interval  time.Duration // between two probes of one port, ±10 %
	Timeout   time.Duration // silence for this long is a miss
	DownAfter uint8         // misses in a row, on either port
	UpAfter   uint8         // answers in a row, on both ports
}

// DefaultTiming is what applies before a spec says otherwise.
func DefaultTiming() Timing {
	return Timing{Interval: time.Second, Timeout: time.Second, DownAfter: 3, UpAfter: 5}
}

// TimingOf takes the timing from the settings; zero fields become defaults.
func TimingOf(s *state.Settings) Timing {
	t := DefaultTiming()
	if s.ProbeInterval > 0 {
		t.Interval = max(s.ProbeInterval, minInterval)
	}
	if s.ProbeTimeout > 0 {
		t.Timeout = s.ProbeTimeout
	}
	if s.DownAfter > 0 {
		t.DownAfter = s.DownAfter
	}
	if s.UpAfter > 0 {
		t.UpAfter = s.UpAfter
	}
	return t
}

// Opinion is what one node thinks of one class of one backend. Values are on
// the wire.
type Opinion uint8

// Opinions.
const (
	OpinionUnknown Opinion = 0 // not enough seen yet
	OpinionUp      Opinion = 1
	OpinionDown    Opinion = 2
	OpinionNeutral Opinion = 3 // it answers, but with nothing that proves the service: no vote
)

// String gives the word that status prints.
func (o Opinion) String() string {
	switch o {
	case OpinionUnknown:
		return "unknown"
	case OpinionUp:
		return "up"
	case OpinionDown:
		return "down"
	case OpinionNeutral:
		return "neutral"
	}
	return fmt.Sprintf("opinion(%d)", uint8(o))
}

// Note says what the last probe of a port met. Values are on the wire.
type Note uint8

// Notes. Each counts for what Result says.
const (
	NoteNone           Note = 0  // not probed yet
	NoteInvalidKE      Note = 1  // INVALID_KE_PAYLOAD: a policy matched
	NoteCookie         Note = 2  // COOKIE, and no more, of a port that has shown a policy: alive under load
	NoteSilent         Note = 3  // no answer within the timeout
	NoteRefused        Note = 4  // ICMP: port, host or network unreachable
	NoteUnsendable     Note = 5  // this node could not send at all
	NoteNoProposal     Note = 6  // NO_PROPOSAL_CHOSEN
	NoteInvalidSyntax  Note = 7  // INVALID_SYNTAX
	NoteInvalidVersion Note = 8  // INVALID_MAJOR_VERSION
	NoteAccepted       Note = 9  // it took our KE group: a full IKE_SA_INIT response
	NoteOther          Note = 10 // another valid IKE answer
	NoteSSTP           Note = 11 // 401 from the resource of SSTP: it listens
	NoteNoTLS          Note = 12 // TCP came up, TLS did not
	NoteNoStatus       Note = 13 // the connection came up, no HTTP status line followed
	NoteOtherStatus    Note = 14 // another HTTP status, or no HTTP at all
	NoteOtherLeaf      Note = 15 // TLS came up with another certificate than it must be
	NoteCall           Note = 16 // a call of SSTP was answered with Call Connect Ack
	NoteCallRefused    Note = 17 // to a call: another HTTP status than 200
	NoteCallNak        Note = 18 // to a call: Call Connect Nak, or Abort
	NoteCallSilent     Note = 19 // to a call: no answer within its timeout, or none that is whole
	NoteCallBroken     Note = 20 // to a call: an answer that is not SSTP
	NotePolicyGone     Note = 21 // NO_PROPOSAL_CHOSEN of a port that had a policy before
	NoteCookieAlone    Note = 22 // COOKIE, and no more, of a port that has never shown a policy
)

// Result is which side of the dampening a note counts for.
type Result uint8

// Results.
const (
	ResultNone Result = iota
	ResultAnswer
	ResultMiss
	ResultNeutral
)

// Result classifies a note.
func (n Note) Result() Result {
	switch n {
	case NoteNone:
		return ResultNone
	case NoteInvalidKE, NoteCookie, NoteSSTP, NoteCall:
		return ResultAnswer
	case NoteSilent, NoteRefused, NoteUnsendable, NoteNoTLS, NoteNoStatus, NoteOtherStatus, NoteOtherLeaf,
		NoteCallRefused, NoteCallNak, NoteCallSilent, NoteCallBroken, NotePolicyGone:
		return ResultMiss
	}
	return ResultNeutral
}

// String gives the word for status and metrics.
func (n Note) String() string {
	switch n {
	case NoteNone:
		return "none"
	case NoteInvalidKE:
		return "invalid_ke_payload"
	case NoteCookie:
		return "cookie"
	case NoteSilent:
		return "silent"
	case NoteRefused:
		return "refused"
	case NoteUnsendable:
		return "unsendable"
	case NoteNoProposal:
		return "no_proposal_chosen"
	case NoteInvalidSyntax:
		return "invalid_syntax"
	case NoteInvalidVersion:
		return "invalid_major_version"
	case NoteAccepted:
		return "accepted"
	case NoteOther:
		return "other_answer"
	case NoteSSTP:
		return "sstp_401"
	case NoteNoTLS:
		return "no_tls"
	case NoteNoStatus:
		return "no_http_status"
	case NoteOtherStatus:
		return "other_http_status"
	case NoteOtherLeaf:
		return "other_certificate"
	case NoteCall:
		return "sstp_call"
	case NoteCallRefused:
		return "sstp_call_refused"
	case NoteCallNak:
		return "sstp_call_nak"
	case NoteCallSilent:
		return "sstp_call_silent"
	case NoteCallBroken:
		return "sstp_call_broken"
	case NotePolicyGone:
		return "policy_gone"
	case NoteCookieAlone:
		return "cookie_alone"
	}
	return fmt.Sprintf("note(%d)", uint8(n))
}

// Hint is a sentence for a person about a note of an IKE port that is no answer,
// else empty.
func (n Note) Hint() string {
	switch n {
	case NoteSilent:
		return "no answer: is the server running, and does its firewall admit UDP 500 and 4500 from the nodes?"
	case NoteRefused:
		return "refused by ICMP: the host answers, but no IKE service listens or a firewall rejects"
	case NoteUnsendable:
		return "this node could not send the probe: look at its own route and interface towards the server"
	case NoteNoProposal:
		return "the server speaks IKEv2 but accepts none of the probed proposals, so it counts neither as up nor as down: " +
			"is RemoteAccess running? Else allow " + OfferedNames()
	case NotePolicyGone:
		return "the server accepted a probed proposal before and accepts none now, so this counts as no answer: " +
			"is RemoteAccess running? If its proposals were changed on purpose, allow " + OfferedNames()
	case NoteInvalidSyntax:
		return "the server rejects the probe as malformed; it counts neither as up nor as down"
	case NoteInvalidVersion:
		return "the server does not speak IKE version 2 on this port; it counts neither as up nor as down"
	case NoteAccepted:
		return "the server accepted a key exchange group that was not proposed; the next probe uses another one"
	case NoteCookieAlone:
		return "the server asks for a cookie (many logins are half open) and gives the probe with the cookie no answer; " +
			"it counts neither as up nor as down"
	case NoteOther:
		return "the server sent an IKE answer that proves nothing about its policy; it counts neither as up nor as down"
	}
	return ""
}

// Limits, each with its reason.
const (
	MaxTargets     = state.MaxBackends      // what a spec can hold
	MaxObservation = 8 << 10                // bytes: it rides in gossip state, which must stay below 64 KiB for all nodes
	minInterval    = 100 * time.Millisecond // servers rate-limit by source
	minTimeout     = 20 * time.Millisecond  //
	reopenDelay    = time.Second            // between attempts to open a socket
)
