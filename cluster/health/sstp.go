package health

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// The check of SSTP: a connection as the server's clients make it (TLS, or none
// where TLS ends on the nodes), then a HEAD of the resource that SSTP is served
// under ([MS-SSTP], section 3.2.4.1). A server whose SSTP service listens asks
// for its own method there and answers 401; one whose service is stopped has
// nothing registered and answers 404, or does not listen. It opens no SSTP call,
// so it takes no port of the server and writes no event.

const (
	sstpPath = "/sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/"
	sstpUp   = "HTTP/1.1 401"

	// SSTPInterval is how often the check is made of a server about which there
	// is no doubt. A handshake costs the server a private key operation, and
	// every node asks; 5 s is 12 a minute and node. In doubt the pace is that
	// of IKE, so that a down takes no longer than a few seconds more.
	SSTPInterval = 5 * time.Second

	// DeepInterval is how often a server gets a call of SSTP, of one node in turn.
	// It takes a port of the server for a moment and writes events in its log.
	DeepInterval = 5 * time.Minute

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

// link is a connection to a server, as far as HTTP begins. Its end is that of the
// context it was opened with: then whoever reads or writes gives up.
type link struct {
	net.Conn // TLS, or raw itself
	raw      net.Conn
	stop     func() bool
}

func (l *link) Close() error {
	l.stop()
	return l.raw.Close()
}

// open connects to a server until ctx ends. A nil link comes with the verdict, or
// with an error, which means that this node could not ask: it knows nothing.
func open(ctx context.Context, dial Dial, local, server netip.Addr, check SSTPCheck) (*link, verdictSSTP, error) {
	raw, err := dial(ctx, local, netip.AddrPortFrom(server, check.Port))
	if err != nil {
		note, err := dialNote(ctx, err)
		return nil, verdictSSTP{note: note}, err
	}
	l := &link{Conn: raw, raw: raw, stop: context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })}
	if !check.TLS {
		return l, verdictSSTP{}, nil
	}
	// Name, chain and version are between the server and its clients: a node
	// that passes TLS through is no party to it. Where TLS ends on the nodes the
	// very certificate counts, as for the server's own crypto binding. Nothing
	// secret is sent.
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10})
	if err := conn.HandshakeContext(ctx); err != nil {
		l.Close()
		return nil, verdictSSTP{NoteNoTLS, words(err)}, nil
	}
	l.Conn = conn
	if check.Leaf == ([32]byte{}) {
		return l, verdictSSTP{}, nil
	}
	if got := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].Raw); got != check.Leaf {
		l.Close()
		return nil, verdictSSTP{NoteOtherLeaf, hex.EncodeToString(got[:])}, nil
	}
	return l, verdictSSTP{}, nil
}

// hostOf is an address as a Host header has it.
func hostOf(server netip.Addr) string {
	if server.Is6() {
		return "[" + server.String() + "]"
	}
	return server.String()
}

// askSSTP makes one check, until ctx ends. An error means that this
// node could not ask: then it knows nothing.
func askSSTP(ctx context.Context, dial Dial, local, server netip.Addr, check SSTPCheck) (verdictSSTP, error) {
	conn, v, err := open(ctx, dial, local, server, check)
	if conn == nil {
		return v, err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "HEAD %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", sstpPath, hostOf(server)); err != nil {
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
