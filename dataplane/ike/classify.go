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
}

// Opening reports whether the datagram opens a conversation. The piece of an
// IP-fragmented datagram is one whatever this says; the caller knows of that.
func (d Datagram) Opening() bool { return d.Kind == IKE && d.Header.Exchange.Opening() }

// Classify reads the UDP payload of the server-side port, which is [Port] or
// [NATPort]: the destination on the way in, the source on the way back. In the
// first piece of a fragmented datagram it is what that piece holds.
func Classify(serverPort uint16, payload []byte) Datagram {
	d := Datagram{Len: len(payload)}
	message := payload
	if serverPort == NATPort {
		switch {
		case len(payload) == 1 && payload[0] == 0xff:
			d.Kind = Keepalive
			return d
		case len(payload) < MarkerLen:
			return d
		case payload[0]|payload[1]|payload[2]|payload[3] != 0:
			d.Kind = ESP
			return d
		}
		message = payload[MarkerLen:]
	}
	h, err := ParseHeader(message)
	if err != nil {
		return d
	}
	d.Header, d.Kind = h, IKE
	if h.Major() != MajorVersion {
		d.Kind = Foreign
	}
	return d
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
	case d.Kind == ESP && d.Len >= MinESPLen:
		return Proof{Level: table.Confirmed}
	case d.Kind != IKE || !d.Header.NextPayload.Protected():
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
