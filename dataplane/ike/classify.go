package ike

import "github.com/vpnlb/vpnlb/dataplane/table"

// Kind is what a UDP payload of port 500 or 4500 is.
type Kind uint8

// Kinds.
const (
	Malformed Kind = iota // too short for what it says it is
	Foreign               // IKE of another major version
	Keepalive             // RFC 3948, section 2.3
	ESP                   // RFC 3948, section 2.1
	IKE                   // an IKEv2 message
)

var kindNames = [...]string{"malformed", "foreign version", "keepalive", "esp", "ike"}

// String names the kind.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "invalid"
}

// Datagram is a classified UDP payload.
type Datagram struct {
	Kind   Kind
	Header Header // of an IKE message (also of a Foreign one)
	Len    int    // of the payload, marker included
	// Sound: a message of IKE is as long as its header says; ESP is whole, or long
	// enough to be told from IKE. What is not sound proves nothing.
	Sound bool
}

// Opening reports whether the datagram opens a conversation. The piece of an
// IP-fragmented datagram is one whatever this says; the caller knows of that.
func (d Datagram) Opening() bool { return d.Kind == IKE && d.Header.Exchange.Opening() }

// Classify reads the UDP payload of the server-side port, which is [Port] or
// [NATPort]: the destination on the way in, the source on the way back. In the
// first piece of a fragmented datagram it is what that piece holds. whole is the
// payload's length by the UDP header, which counts all pieces.
func Classify(serverPort uint16, payload []byte, whole uint32) Datagram {
	d := Datagram{Len: len(payload)}
	marker := 0
	if serverPort == NATPort {
		switch {
		case len(payload) == 1 && payload[0] == 0xff:
			d.Kind = Keepalive
			return d
		case len(payload) < MarkerLen:
			return d
		case payload[0]|payload[1]|payload[2]|payload[3] == 0:
			marker = MarkerLen
		case !unmarked(payload, whole):
			d.Kind = ESP
			d.Sound = len(payload) >= HeaderLen || uint32(len(payload)) == whole
			return d
		}
	}
	h, err := ParseHeader(payload[marker:])
	if err != nil {
		return d
	}
	d.Header, d.Kind, d.Sound = h, IKE, h.Length == whole-uint32(marker)
	if h.Major() != MajorVersion {
		d.Kind = Foreign
	}
	return d
}

// unmarked reports whether a payload of port 4500 that does not start with the
// marker is IKE none the less: version 1 or 2, and a length that is the datagram's.
// A server answers so when the request came from the client's port 500
// (strongSwan). A packet of ESP looks like that once in 2^35.
func unmarked(payload []byte, whole uint32) bool {
	h, err := ParseHeader(payload)
	return err == nil && (h.Major() == 1 || h.Major() == MajorVersion) && h.Length == whole
}

// SpeaksESP reports whether the datagram is ESP of a length that only an established
// SA gives.
func (d Datagram) SpeaksESP() bool { return d.Kind == ESP && d.Sound && d.Len >= MinESPLen }

// Protected reports whether the datagram is a message that is encrypted and
// authenticated: both sides have an SPI by then. Its length must be what the header says: a server copies the message
// ID of a request that it cannot read into an unmarked answer, and read four bytes
// later, behind an initiator's SPI that starts like a marker, that ID stands where
// payload, version, exchange and flags do.
func (d Datagram) Protected() bool {
	return d.Kind == IKE && d.Sound && d.Header.ResponderSPI != 0 && d.Header.NextPayload.Protected()
}

// OfSA reports whether the message belongs to an IKE SA of which both SPIs are known:
// the response of IKE_SA_INIT that accepts one (RFC 7296, section 1.2), or what is
// protected by it.
func (d Datagram) OfSA() bool {
	return d.Protected() || d.Kind == IKE && d.Sound && d.Header.ResponderSPI != 0 && d.Header.NextPayload == SecurityAssoc
}

// Proof is what a server's datagram proves about the client it goes to.
type Proof struct {
	Level table.Confirmation // 0: nothing
	// Opening: it answers an exchange that only a server which accepted this
	// client's handshake answers, so it may replace a record of another server.
	Opening bool
}

// Proof judges a datagram on the way back. ESP shows an established child SA.
// A protected message shows a completed key exchange; the response with message
// ID 2 or more of IKE_AUTH shows that the client took part in at least two
// rounds after it, which a replayed first IKE_AUTH request cannot reach.
func (d Datagram) Proof() Proof {
	switch {
	case d.SpeaksESP():
		return Proof{Level: table.Confirmed}
	case !d.Protected():
		return Proof{}
	}
	h := d.Header
	p := Proof{Level: table.EarnedSK}
	if h.Response() {
		if h.Exchange == Auth && h.MessageID >= 2 {
			p.Level = table.EarnedAuth
		}
		p.Opening = h.Exchange == Auth || h.Exchange == Intermediate
	}
	return p
}
