package screen

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// Sizes of messages in bytes (RFC 4271, section 4).
const (
	headerLen  = 19
	maxMessage = 4096
)

// Type is the type of a message (RFC 4271, section 4.1; RFC 2918).
type Type uint8

// The five types of message.
const (
	TypeOpen Type = iota + 1
	TypeUpdate
	TypeNotification
	TypeKeepalive
	TypeRouteRefresh
)

// minLen is the shortest message of each type, header included.
var minLen = [...]int{TypeOpen: 29, TypeUpdate: 23, TypeNotification: 21, TypeKeepalive: 19, TypeRouteRefresh: 23}

// Error codes of NOTIFICATION (RFC 4271, section 4.5).
const (
	codeHeader    = 1
	codeOpen      = 2
	codeHoldTimer = 4
	codeFSM       = 5 // subcodes of RFC 6608
	codeCease     = 6

	ceaseCollision = 7 // RFC 4486
)

// Fault is a violation of the protocol: what NOTIFICATION answers it (RFC 4271,
// section 6), and a sentence for the administrator.
type Fault struct {
	Code, Subcode uint8
	Data          []byte
	Reason        string
}

func (f *Fault) Error() string { return f.Reason }

func fault(code, subcode uint8, data []byte, format string, a ...any) *Fault {
	return &Fault{Code: code, Subcode: subcode, Data: data, Reason: fmt.Sprintf(format, a...)}
}

// CheckHeader judges the 19 bytes before a message and returns its whole length.
func CheckHeader(h []byte) (int, Type, error) {
	if !bytes.Equal(h[:16], marker[:]) {
		return 0, 0, fault(codeHeader, 1, nil, "message without the marker of RFC 4271")
	}
	n, t := int(binary.BigEndian.Uint16(h[16:])), Type(h[18])
	if n < headerLen || n > maxMessage {
		return 0, 0, fault(codeHeader, 2, bytes.Clone(h[16:18]), "message of %d bytes: must be within %d..%d", n, headerLen, maxMessage)
	}
	if t < TypeOpen || t > TypeRouteRefresh {
		return 0, 0, fault(codeHeader, 3, []byte{h[18]}, "message of the unknown type %d", h[18])
	}
	exact := t == TypeKeepalive || t == TypeRouteRefresh
	if n < minLen[t] || exact && n != minLen[t] {
		return 0, 0, fault(codeHeader, 2, bytes.Clone(h[16:18]), "message of type %d with the impossible length %d", t, n)
	}
	return n, t, nil
}

var marker = [16]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Read reads one message into buf, which has room for maxMessage bytes. A *Fault
// tells what to answer; any other error is the connection's.
func Read(r io.Reader, buf []byte) ([]byte, Type, error) {
	if _, err := io.ReadFull(r, buf[:headerLen]); err != nil {
		return nil, 0, err
	}
	n, t, err := CheckHeader(buf[:headerLen])
	if err != nil {
		return nil, 0, err
	}
	if _, err := io.ReadFull(r, buf[headerLen:n]); err != nil {
		return nil, 0, err
	}
	return buf[:n], t, nil
}

func message(t Type, body ...byte) []byte {
	m := make([]byte, 0, headerLen+len(body))
	m = append(m, marker[:]...)
	m = binary.BigEndian.AppendUint16(m, uint16(headerLen+len(body)))
	return append(append(m, byte(t)), body...)
}

func keepalive() []byte { return message(TypeKeepalive) }

func routeRefresh(f Family) []byte {
	return message(TypeRouteRefresh, byte(f.AFI>>8), byte(f.AFI), 0, f.SAFI)
}

// notification is the answer to a fault.
func (f *Fault) notification() []byte {
	return message(TypeNotification, append([]byte{f.Code, f.Subcode}, f.Data...)...)
}

var codeNames = [...]string{
	codeHeader: "message header error", codeOpen: "OPEN message error", 3: "UPDATE message error",
	codeHoldTimer: "hold timer expired", codeFSM: "finite state machine error", codeCease: "cease",
}

// notificationText names code and subcode of a NOTIFICATION message; what else it
// says is the sender's and stays unread.
func notificationText(m []byte) string {
	code, sub := m[headerLen], m[headerLen+1]
	name := "unknown error"
	if code > 0 && int(code) < len(codeNames) {
		name = codeNames[code]
	}
	return fmt.Sprintf("%s (code %d, subcode %d)", name, code, sub)
}
