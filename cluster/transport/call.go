package transport

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// idleConn is how long an unused RPC connection is kept.
const idleConn = 30 * time.Second

// callTimeout bounds any call, whatever its context says: longer than an
// election and a proposal, shorter than somebody would wait.
const callTimeout = time.Minute

func (t *Transport) newPool() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, host string) (net.Conn, error) {
			to, err := targetOf(host)
			if err != nil {
				return nil, err
			}
			return t.dial(ctx, to, protoRPC)
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    4,
		MaxIdleConns:           4 * state.MaxMembers,
		IdleConnTimeout:        idleConn,
		MaxResponseHeaderBytes: 16 << 10,
	}
}

// The pool of net/http knows hosts only, so the host of our URLs is the whole
// target: address and key in hexadecimal, and the expected node.
func hostOf(to Target) string {
	host := hex.EncodeToString([]byte(to.Addr)) + "." + to.Node.String()
	if to.Key != nil {
		host += "." + hex.EncodeToString(to.Key)
	}
	return host
}

func targetOf(hostport string) (Target, error) {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return Target{}, err
	}
	addr, rest, _ := strings.Cut(host, ".")
	node, key, _ := strings.Cut(rest, ".")
	b, err := hex.DecodeString(addr)
	if err != nil {
		return Target{}, fmt.Errorf("decode target: %w", err)
	}
	to := Target{Addr: string(b)}
	if key != "" {
		if to.Key, err = hex.DecodeString(key); err != nil {
			return Target{}, fmt.Errorf("decode target: %w", err)
		}
	}
	to.Node, err = state.ParseNodeID(node)
	return to, err
}

// Call makes one RPC. in: nil sends an empty body, []byte is sent as it is,
// anything else as JSON. out: nil discards the answer, *[]byte takes it as it
// is, anything else is decoded from JSON. Connections are kept and reused. The
// call may be delivered twice when a kept connection turns out to be dead;
// CallOnce is for what must not be. It ends after a minute, or with ctx.
//
// Errors: *StatusError when the peer refused, *RemovedError when it says that
// this node was removed; anything else means that no answer came.
func (t *Transport) Call(ctx context.Context, to Target, path string, in, out any) error {
	if !strings.HasPrefix(path, "/") {
		return fmt.Errorf("call %s: path does not begin with a slash", path)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := roundTrip(ctx, &http.Client{Transport: t.pool, CheckRedirect: noRedirect},
		"http://"+hostOf(to)+path, in, out, t.cfg.MaxBody)
	if err != nil {
		return fmt.Errorf("call %s at %s: %w", path, to.Addr, err)
	}
	return nil
}

// Ping proves that a member answers at an address, both sides authenticated
// and authorised, and says who it is.
func (t *Transport) Ping(ctx context.Context, to Target) (Name, error) {
	var p pong
	if err := t.Call(ctx, to, pathPing, nil, &p); err != nil {
		return Name{}, err
	}
	return Name(p), nil
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func roundTrip(ctx context.Context, cl *http.Client, url string, in, out any, limit int64) error {
	return roundTripOf(ctx, cl, url, in, out, limit, true)
}

// roundTripOf is roundTrip; again: the request may be sent twice.
func roundTripOf(ctx context.Context, cl *http.Client, url string, in, out any, limit int64, again bool) error {
	body, err := encodeBody(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	// Present but empty: it is not sent, and lets net/http send the request
	// again when a kept connection was dead.
	if again {
		req.Header["Idempotency-Key"] = nil
	}
	resp, err := cl.Do(req)
	if err != nil {
		return unwrapURL(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return readError(resp)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if int64(len(b)) > limit {
		return fmt.Errorf("answer is larger than %d bytes", limit)
	}
	return decodeBody(b, out)
}

func encodeBody(in any) ([]byte, error) {
	switch v := in.(type) {
	case nil:
		return nil, nil
	case []byte:
		return v, nil
	}
	b, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	return b, nil
}

func decodeBody(b []byte, out any) error {
	switch v := out.(type) {
	case nil:
		return nil
	case *[]byte:
		*v = b
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

// unwrapURL takes off url.Error, whose text would show our made-up host.
func unwrapURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}
