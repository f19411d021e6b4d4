package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
)

// startErrand runs a peer of the client network that ends by itself and writes
// one JSON value.
func (l *Lab) startErrand(kind string, cfg any) error {
	if err := os.Remove(l.path("log", kind+".log")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old result: %w", err)
	}
	e := &embeddedPeers{l: l}
	return e.startPeer(kind, kind, roleClient, cfg)
}

// endErrand waits for its end and reads what it wrote; out nil: nothing.
func (l *Lab) endErrand(ctx context.Context, kind string, out any) error {
	p := l.st.Processes[kind]
	if err := until(ctx, servedBound, kind+" to end", func() (bool, error) { return !p.alive(), nil }); err != nil {
		return err
	}
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return fmt.Errorf("read result of %s: %w", kind, err)
	}
	if out == nil {
		if len(b) > 0 {
			return fmt.Errorf("%s: %s", kind, bytes.TrimSpace(b))
		}
		return nil
	}
	if err := json.Unmarshal(bytes.TrimSpace(b), out); err != nil {
		return fmt.Errorf("decode result of %s %q: %w", kind, b, err)
	}
	return nil
}

func (l *Lab) errand(ctx context.Context, kind string, cfg, out any) error {
	if err := l.startErrand(kind, cfg); err != nil {
		return err
	}
	return l.endErrand(ctx, kind, out)
}

// strangers configures n addresses of each family that no client has had.
func (l *Lab) strangers(n int) (out []netip.Addr, err error) {
	per := map[bool]int{}
	for len(out) < n*len(l.st.Options.families()) {
		a := l.st.Options.client(l.st.NextClient)
		l.st.NextClient++
		if l.st.NextClient > maxStrangers {
			return nil, errors.New("no client addresses left: build the lab again")
		}
		if per[a.Is6()] < n {
			per[a.Is6()]++
			out = append(out, a)
		}
	}
	if err := l.inside(roleClient, func() error { return addLoopback(out) }); err != nil {
		return nil, err
	}
	return out, l.save()
}

// maxStrangers is where the plan of client addresses ends: the scatter prefix
// begins behind it.
const maxStrangers = 48 * 250
