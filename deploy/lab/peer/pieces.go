package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"time"
)

// PiecesConfig is a look at how fragments are treated: logins whose IKE_AUTH is
// cut and sent by hand.
type PiecesConfig struct {
	VIP     netip.Addr   `json:"vip"`
	VIP6    netip.Addr   `json:"vip6"`
	Clients []netip.Addr `json:"clients"` // local in the namespace; each runs every case
}

// PiecesResult is one case of one client.
type PiecesResult struct {
	Client    netip.Addr `json:"client"`
	Case      string     `json:"case"`
	Answered  bool       `json:"answered"`  // the server took the IKE_AUTH
	Wanted    bool       `json:"wanted"`    // what Answered should be
	Sent      int        `json:"sent"`      // packets by hand
	Malformed int        `json:"malformed"` // of them so many that a balancer must refuse
}

const (
	pieceAnswer  = 700 * time.Millisecond // for the answer, or for none
	badRepeat    = 4                      // of each malformed packet
	maxIPPayload = 65535
)

// cut is one piece of a datagram as it is sent: bytes from..to, said to lie at
// an offset.
type cut struct {
	from, to int
	offset   int
	more     bool
	spoil    bool // other content
}

func straight(from, to, size int) cut { return cut{from: from, to: to, offset: from, more: to < size} }

// pieceCase is a way to send a datagram of that size.
type pieceCase struct {
	name      string
	answered  bool
	malformed int // of its cuts
	cuts      func(size int) []cut
}

var pieceCases = []pieceCase{
	{"in order", true, 0, func(n int) []cut { return []cut{straight(0, 1448, n), straight(1448, n, n)} }},
	{"later before first", true, 0, func(n int) []cut { return []cut{straight(1448, n, n), straight(0, 1448, n)} }},
	{"four, shuffled", true, 0, func(n int) []cut {
		return []cut{straight(1024, 1536, n), straight(1536, n, n), straight(0, 512, n), straight(512, 1024, n)}
	}},
	// What overlaps is the receiver's to refuse (RFC 5722 3; Linux does so in
	// IPv4 too): no balancer without reassembly can see it.
	{"overlapping", false, 0, func(n int) []cut {
		return []cut{straight(0, 1024, n), {from: 512, to: 1448, offset: 512, more: true, spoil: true}, straight(1448, n, n)}
	}},
	// A first piece that does not hold the IKE header hides what it is.
	{"tiny first", false, 1, func(n int) []cut { return []cut{straight(0, 8, n), straight(8, 1448, n), straight(1448, n, n)} }},
	{"more, not a multiple of 8", false, badRepeat, func(int) []cut { return repeat(cut{from: 0, to: 1001, more: true}) }},
	{"more, empty", false, badRepeat, func(int) []cut { return repeat(cut{from: 0, to: 0, offset: 512, more: true}) }},
	{"beyond 65535", false, badRepeat, func(int) []cut { return repeat(cut{from: 0, to: 64, offset: maxIPPayload &^ 7}) }},
}

func repeat(c cut) (out []cut) {
	for range badRepeat {
		out = append(out, c)
	}
	return out
}

// Pieces runs all cases and writes the results to out as JSON.
func Pieces(ctx context.Context, cfg PiecesConfig, out io.Writer) error {
	raw, err := newRawSender()
	if err != nil {
		return err
	}
	defer raw.close()
	var results []PiecesResult
	var elsewhere foreign
	for _, a := range cfg.Clients {
		vip := cfg.VIP
		if a.Is6() {
			vip = cfg.VIP6
		}
		for _, c := range pieceCases {
			r, err := c.run(ctx, raw, a, vip, &elsewhere)
			if err != nil {
				return fmt.Errorf("%s as %s: %w", c.name, a, err)
			}
			results = append(results, r)
		}
	}
	if err := elsewhere.err(); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(results)
}

// run logs in with the pieces of one case.
func (c pieceCase) run(ctx context.Context, raw *rawSender, from, vip netip.Addr, f *foreign) (r PiecesResult, err error) {
	t, stop, err := open(ctx, from, vip, f)
	if err != nil {
		return r, err
	}
	defer stop()
	defer t.conn.Close()
	to := netip.AddrPortFrom(vip, 4500)
	d := datagram(localOf(t.conn), to, t.authRequest(1, 1, authRequestSize))
	cuts, id := c.cuts(len(d)), rand.Uint32()|1
	for i, x := range cuts {
		b := d[x.from:x.to]
		if x.spoil {
			b = random(len(b))
		}
		if c.malformed == len(cuts) {
			id = rand.Uint32() | 1 // each for itself
		}
		p := piece{id: id, offset: x.offset, more: x.more}
		if err := raw.send(vip, ipPacket(from, vip, protoUDP, p, b)); err != nil {
			return r, fmt.Errorf("piece %d: %w", i, err)
		}
	}
	answered, err := t.await(t.conn, to, pieceAnswer, t.answered)
	return PiecesResult{Client: Key(from), Case: c.name, Answered: answered, Wanted: c.answered, Sent: len(cuts), Malformed: c.malformed}, err
}
