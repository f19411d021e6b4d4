package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"
)

// Traced is one packet of a client that is followed.
type Traced struct {
	At      time.Time `json:"at"`
	In      string    `json:"in"`            // interface
	Out     string    `json:"out,omitempty"` // interface; none: dropped, or passed to the kernel
	Bytes   int       `json:"bytes"`
	Reason  string    `json:"reason"`
	Backend string    `json:"backend,omitempty"`
	Head    []byte    `json:"head"` // of the frame as it leaves
}

// Fail answers a request that is not served by Get or Post.
func Fail(w http.ResponseWriter, err error) { reply(w, nil, err) }

// Trace reads the packets of a client as they pass, until there are no more or ctx ends.
func (c *Client) Trace(ctx context.Context, path string, each func(Traced) error) error {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	for {
		var t Traced
		if err := d.Decode(&t); err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return err
		}
		if err := each(t); err != nil {
			return err
		}
	}
}
