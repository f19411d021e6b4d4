package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// Client talks to a node's admin socket. It is safe for concurrent use.
type Client struct {
	path     string
	http     http.Client
	patience time.Duration // for an answer; of a request that waits for more by nature: longPatience
}

// How long an answer is waited for. A change waits for a leader and a quorum for
// 15 s itself; init waits until the node is up, and remove changes twice.
const (
	patience     = 20 * time.Second
	longPatience = 75 * time.Second
)

var (
	errSilent      = errors.New("no answer")
	errInterrupted = errors.New("interrupted here; the node goes on in the background: run the command again to follow it")
)

// NewClient returns a client of the socket at path.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{path: path, patience: patience, http: http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Get reads path into out.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	ctx, cancel := c.wait(ctx, path)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.unreachable(ctx, err)
	}
	return nil
}

// Post sends in to path and reads the answer into out.
func (c *Client) Post(ctx context.Context, path string, in, out any) error {
	ctx, cancel := c.wait(ctx, path)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.unreachable(ctx, err)
	}
	return nil
}

// wait bounds the wait for an answer.
func (c *Client) wait(ctx context.Context, path string) (context.Context, context.CancelFunc) {
	limit := c.patience
	if path == PathInit || path == PathRemove {
		limit = max(limit, longPatience)
	}
	return context.WithTimeoutCause(ctx, limit, errSilent)
}

// Stream sends in to path and calls step for each step of the operation; it
// returns when the operation is done.
func (c *Client) Stream(ctx context.Context, path string, in any, step func(string)) error {
	resp, err := c.do(ctx, http.MethodPost, path, in)
	if err != nil && ctx.Err() != nil {
		return errInterrupted
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	for {
		var p Progress
		if err := d.Decode(&p); err != nil {
			if ctx.Err() != nil {
				return errInterrupted
			}
			return fmt.Errorf("the node stopped answering in the middle (%w): run the command again to resume", err)
		}
		switch {
		case p.Error != "":
			return &Error{Message: p.Error, Status: p.Status}
		case p.Done:
			return nil
		default:
			step(p.Step)
		}
	}
}

func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://vpnlb"+path, body)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	known := Error{Status: resp.StatusCode}
	if err := json.NewDecoder(io.LimitReader(resp.Body, MaxBody)).Decode(&known); err != nil || known.Message == "" {
		known.Message = "the node answered " + resp.Status
	}
	return nil, &known
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	switch {
	case errors.Is(context.Cause(ctx), errSilent):
		return fmt.Errorf("the node holds the socket %s but does not answer: hung? Look at its log and at 'ps'; what is pinned forwards on, and a restart of the service loses no packet", c.path)
	case ctx.Err() != nil:
		return errors.New("interrupted before the node answered")
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no vpnlb node is running at %s: start it with 'vpnlb serve --config FILE', or name another --socket", c.path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no permission for the admin socket %s: run as root or as a member of its group", c.path)
	}
	return fmt.Errorf("talk to the node at %s: %w", c.path, err)
}
