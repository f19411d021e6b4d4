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
)

// Client talks to a node's admin socket. It is safe for concurrent use.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client of the socket at path.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Get reads path into out.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(out)
}

// Post sends in to path and reads the answer into out.
func (c *Client) Post(ctx context.Context, path string, in, out any) error {
	resp, err := c.do(ctx, http.MethodPost, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(out)
}

// Stream sends in to path and calls step for each step of the operation; it
// returns when the operation is done.
func (c *Client) Stream(ctx context.Context, path string, in any, step func(string)) error {
	resp, err := c.do(ctx, http.MethodPost, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	for {
		var p Progress
		if err := d.Decode(&p); err != nil {
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
		return nil, c.unreachable(err)
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

func (c *Client) unreachable(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no vpnlb node is running at %s: start it with 'vpnlb serve --config FILE', or name another --socket", c.path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no permission for the admin socket %s: run as root or as a member of its group", c.path)
	}
	return fmt.Errorf("talk to the node at %s: %w", c.path, err)
}
