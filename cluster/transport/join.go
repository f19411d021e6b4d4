package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

const (
	// joinTimeout bounds a join from handshake to answer: it holds a half-open
	// place, and includes one proposal to the log.
	joinTimeout = 30 * time.Second
	// maxJoinBody bounds what a stranger may send.
	maxJoinBody = 64 << 10
	// maxJoinAnswer bounds what the cluster answers: members and sealed keys.
	maxJoinAnswer = 1 << 20

	pathJoin = "/join"
)

// ErrWrongCA means that the server that was to be joined does not hold a
// certificate of the CA with the given hash.
var ErrWrongCA = errors.New("server does not show the CA with this hash: wrong cluster, wrong hash, or somebody in between")

// HandleJoin serves nodes that have no certificate yet. The body is bounded (64
// KiB), nobody is authenticated: the handler judges the token. nil stops it. A
// handler made by Bytes or JSON gets the zero Peer.
func (t *Transport) HandleJoin(h http.Handler) {
	if h == nil {
		t.joiner.Store(nil)
		return
	}
	t.joiner.Store(&h)
}

func (t *Transport) joinServer(ctx context.Context) *http.Server {
	s := t.server(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // one request a connection
		h := t.joiner.Load()
		switch {
		case r.URL.Path != pathJoin || r.Method != http.MethodPost:
			writeError(w, &StatusError{Code: http.StatusNotFound, Reason: "only joining is served here"})
		case h == nil:
			writeError(w, &StatusError{Code: http.StatusServiceUnavailable, Reason: "this node takes no joins now"})
		default:
			r.Body = http.MaxBytesReader(w, r.Body, maxJoinBody)
			(*h).ServeHTTP(w, r)
		}
	}))
	s.ReadTimeout = t.cfg.HandshakeTimeout
	s.WriteTimeout = joinTimeout
	return s
}

// Joiner calls a cluster that the node does not belong to yet.
type Joiner struct {
	Addr   string // host:port of any member
	CAHash CAHash
	Dial   func(ctx context.Context, addr string) (net.Conn, error) // nil: TCP
	Vet    func(server Name) error                                  // may refuse the cluster before anything is sent; nil: any
}

// Join sends a request (as Call's in and out) to the member at j.Addr over a
// connection whose server proves to hold a certificate of the pinned CA. It
// returns that server's name (and with it the cluster ID) and the DER of the
// pinned CA certificate. It may be repeated. A refusal is a *StatusError; with
// a wrong CA hash nothing is sent, and the error is ErrWrongCA.
func (j Joiner) Join(ctx context.Context, in, out any) (server Name, ca []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	dial := j.Dial
	if dial == nil {
		dial = dialTCP
	}
	raw, err := dial(ctx, j.Addr)
	if err != nil {
		return Name{}, nil, fmt.Errorf("dial %s: %w", j.Addr, err)
	}
	defer raw.Close()
	tc := tls.Client(raw, joinTLS(j.CAHash, func(n Name, root *x509.Certificate) { server, ca = n, root.Raw }))
	if err := tc.HandshakeContext(ctx); err != nil {
		return Name{}, nil, fmt.Errorf("greet %s%s: %w", j.Addr, strangerHint(err), err)
	}
	if j.Vet != nil {
		if err := j.Vet(server); err != nil {
			return Name{}, nil, err
		}
	}
	once := make(chan net.Conn, 1)
	once <- struct{ net.Conn }{tc} // hides the *tls.Conn from net/http
	cl := &http.Client{CheckRedirect: noRedirect, Transport: &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, errors.New("connection was lost")
			}
		},
	}}
	if err := roundTrip(ctx, cl, "http://join"+pathJoin, in, out, maxJoinAnswer); err != nil {
		return Name{}, nil, fmt.Errorf("join at %s: %w", j.Addr, err)
	}
	return server, ca, nil
}
