package health

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// The check of TCP 443 where a VIP passes it through: a TLS handshake, then a
// HEAD of the resource that SSTP is served under ([MS-SSTP], section 3.2.4.1).
// A server whose SSTP service listens asks for its own method there and answers
// 401; one whose service is stopped has nothing registered and answers 404, or
// does not listen. It opens no SSTP call, so it takes no port of the server and
// writes no event.

const (
	sstpPort = 443
	sstpPath = "/sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/"
	sstpUp   = "HTTP/1.1 401"

	// SSTPInterval is how often the check is made of a server about which there
	// is no doubt. A handshake costs the server a private key operation, and
	// every node asks; 5 s is 12 a minute and node. In doubt the pace is that
	// of IKE, so that a down takes no longer than a few seconds more.
	SSTPInterval = 5 * time.Second

	maxStatusLine = 4 << 10 // bytes read before the answer counts as none
	maxDetail     = 80      // bytes of a server's words that status repeats
)

// Dial opens a TCP connection from an address of this node; none: the kernel
// chooses.
type Dial func(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error)

func dialTCP(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	if local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	return d.DialContext(ctx, "tcp", to.String())
}

// verdictSSTP is what one check met; detail is for a person.
type verdictSSTP struct {
	note   Note
	detail string
}

// askSSTP makes one check, until ctx ends. An error means that this
// node could not ask: then it knows nothing.
func askSSTP(ctx context.Context, dial Dial, local, server netip.Addr) (verdictSSTP, error) {
	to := netip.AddrPortFrom(server, sstpPort)
	raw, err := dial(ctx, local, to)
	if err != nil {
		note, err := dialNote(ctx, err)
		return verdictSSTP{note: note}, err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })() // whoever reads or writes gives up
	// Name, chain and version are between the server and its clients: a node
	// that passes TLS through is no party to it. Nothing secret is sent.
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10})
	if err := conn.HandshakeContext(ctx); err != nil {
		return verdictSSTP{NoteNoTLS, words(err)}, nil
	}
	host := server.String()
	if server.Is6() {
		host = "[" + host + "]"
	}
	if _, err := fmt.Fprintf(conn, "HEAD %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", sstpPath, host); err != nil {
		return verdictSSTP{NoteNoStatus, words(err)}, nil
	}
	line, err := statusLine(conn)
	switch {
	case err != nil:
		return verdictSSTP{NoteNoStatus, words(err)}, nil
	case line == sstpUp || strings.HasPrefix(line, sstpUp+" "):
		return verdictSSTP{note: NoteSSTP}, nil
	}
	return verdictSSTP{NoteOtherStatus, clip(line)}, nil
}

// dialNote classifies a connection that did not come up.
func dialNote(ctx context.Context, err error) (Note, error) {
	var late net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EHOSTUNREACH):
		return NoteRefused, nil
	case errors.Is(err, syscall.ENETUNREACH):
		return NoteUnsendable, nil
	case ctx.Err() != nil, errors.As(err, &late) && late.Timeout():
		return NoteSilent, nil
	}
	return NoteNone, err
}

var errNoLine = errors.New("no line ends within its first 4096 bytes")

// statusLine reads the first line of an answer, without its end.
func statusLine(r io.Reader) (string, error) {
	buf := make([]byte, maxStatusLine)
	n := 0
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if end := bytes.IndexByte(buf[:n], '\n'); end >= 0 {
			return strings.TrimSuffix(string(buf[:end]), "\r"), nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", errNoLine
}

// words makes a sentence of an error that a peer had a hand in.
func words(err error) string {
	var late net.Error
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return "the server closed the connection"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &late) && late.Timeout():
		return "no answer within the timeout"
	}
	return clip(err.Error())
}

// clip bounds and quotes what came from outside.
func clip(s string) string {
	return strings.Trim(fmt.Sprintf("%q", s[:min(len(s), maxDetail)]), `"`)
}
