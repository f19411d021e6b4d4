package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Limits and times of a responder.
const (
	maxHalfOpen      = 1 << 17          // forged SA_INITs: beyond it they are refused
	halfOpenLife     = 10 * time.Second // without IKE_AUTH
	dpdInterval      = 5 * time.Second  // INFORMATIONAL to each client, as RRAS and strongSwan do
	serverKeepalive  = 2                // every so many DPD intervals a keepalive too
	maxStrayClients  = 1 << 14          // distinct addresses remembered
	maxDatagramBytes = 65535
	authResponseSize = 1900 // with a certificate: leaves as two IP fragments
)

// ResponderConfig is one server.
type ResponderConfig struct {
	Name    string     `json:"name"`
	Number  uint16     `json:"number"` // travels in every echo; not 0
	Addr    netip.Addr `json:"addr"`
	Control string     `json:"control"`
}

// Served is what a responder knows about one client with an SA.
type Served struct {
	Client   netip.Addr `json:"client"`
	SPI      uint32     `json:"spi"`
	Received int64      `json:"received"`
	LastSeq  uint64     `json:"last_seq"`
	Last     time.Time  `json:"last"`
}

// ResponderStats is a responder's answer to /stats.
type ResponderStats struct {
	Name        string         `json:"name"`
	Established int            `json:"established"`
	HalfOpen    int            `json:"half_open"`
	Probes      int64          `json:"probes"`      // SA_INITs refused with INVALID_KE_PAYLOAD
	Refused     int64          `json:"refused"`     // what could not be read
	Strays      map[string]int `json:"strays"`      // by client: packets for an SA that is not here
	StrayTotal  int64          `json:"stray_total"` //
	Clients     []Served       `json:"clients"`
}

type saKey struct {
	client netip.Addr
	spiI   uint64
}

// sa is one IKE SA with its only child.
type sa struct {
	key         saKey
	spiR        uint64
	created     time.Time
	initReply   []byte
	established bool
	messageID   uint32 // of the last request answered
	lastReply   []byte // RFC 7296 2.1: a repeated request gets the same reply
	in, out     uint32 // ESP SPIs
	peer        netip.AddrPort
	dpd         uint32 // message ID of our own requests
	served      Served
}

type responder struct {
	cfg       ResponderConfig
	c500      *net.UDPConn
	c4500     *net.UDPConn
	mu        sync.Mutex
	sas       map[saKey]*sa
	bySPI     map[uint32]*sa
	byClient  map[netip.Addr]*sa // established: a new login replaces it (RFC 7296 2.4 INITIAL_CONTACT)
	halfOpen  int
	probes    int64
	refused   int64
	stray     map[netip.Addr]int
	strayMore int64
}

// RunResponder serves until ctx ends.
func RunResponder(ctx context.Context, cfg ResponderConfig) error {
	r := &responder{
		cfg: cfg, sas: map[saKey]*sa{}, bySPI: map[uint32]*sa{},
		byClient: map[netip.Addr]*sa{}, stray: map[netip.Addr]int{},
	}
	var err error
	if r.c500, err = listenUDP(ctx, netip.AddrPortFrom(cfg.Addr, 500), socketBuffer); err != nil {
		return err
	}
	defer r.c500.Close()
	if r.c4500, err = listenUDP(ctx, netip.AddrPortFrom(cfg.Addr, 4500), socketBuffer); err != nil {
		return err
	}
	defer r.c4500.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() { cancel(r.read(r.c500, r.on500)) })
	wg.Go(func() { cancel(r.read(r.c4500, r.on4500)) })
	wg.Go(func() { r.housekeep(ctx) })
	wg.Go(func() {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { reply(w, r.stats()) })
		cancel(serveControl(ctx, cfg.Control, mux))
	})
	<-ctx.Done()
	r.c500.Close()
	r.c4500.Close()
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (r *responder) read(c *net.UDPConn, handle func([]byte, netip.AddrPort)) error {
	buf := make([]byte, maxDatagramBytes)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			continue // an ICMP error about an earlier packet
		}
		handle(buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	}
}

func (r *responder) on500(b []byte, from netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.ike(b, from, false); m != nil {
		r.c500.WriteToUDPAddrPort(m, from)
	}
}

func (r *responder) on4500(b []byte, from netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(b) == 1 && b[0] == keepalive[0] {
		return
	}
	if len(b) < 4 {
		r.refused++
		return
	}
	if [4]byte(b) != marker {
		r.esp(b, from)
		return
	}
	if m := r.ike(b[4:], from, true); m != nil {
		r.c4500.WriteToUDPAddrPort(onPort4500(m), from)
	}
}

// esp echoes a data packet of an SA of ours; anything else is a stray.
func (r *responder) esp(b []byte, from netip.AddrPort) {
	d, ok := parseData(b)
	s := r.bySPI[binary.BigEndian.Uint32(b)]
	if !ok || s == nil || s.key.client != from.Addr() {
		r.strayFrom(from.Addr())
		return
	}
	s.peer = from
	s.served.Received++
	s.served.LastSeq = max(s.served.LastSeq, d.seq)
	s.served.Last = time.Now()
	r.c4500.WriteToUDPAddrPort(data{spi: s.out, seq: d.seq, server: r.cfg.Number}.encode(), from)
}

func (r *responder) strayFrom(a netip.Addr) {
	r.strayMore++
	if _, known := r.stray[a]; known || len(r.stray) < maxStrayClients {
		r.stray[a]++
	}
}

// ike answers one IKE message; nil: silence, as for everything this server
// has no SA for (a real one says nothing either).
func (r *responder) ike(b []byte, from netip.AddrPort, natt bool) []byte {
	h, ok := parseHeader(b)
	if !ok {
		r.refused++
		return nil
	}
	key := saKey{from.Addr(), h.spiI}
	if h.exchange == exchangeSAInit {
		return r.init(h, b, key)
	}
	s := r.sas[key]
	if s == nil || s.spiR != h.spiR || !natt {
		r.strayFrom(from.Addr())
		return nil
	}
	s.peer = from
	if h.flags&flagResponse != 0 { // to our own DPD
		return nil
	}
	in, ok := openSK(h, b)
	if !ok {
		r.refused++
		return nil
	}
	switch {
	case s.lastReply != nil && h.messageID == s.messageID:
		return s.lastReply
	case h.messageID != s.messageID+1:
		r.refused++
		return nil
	}
	if h.exchange == exchangeAuth && !s.established {
		r.auth(s, in)
	}
	s.messageID = h.messageID
	size := 0
	if h.exchange == exchangeAuth && len(b) > authResponseSize {
		size = authResponseSize
	}
	s.lastReply = skMessage(header{spiI: h.spiI, spiR: h.spiR, exchange: h.exchange, flags: flagResponse, messageID: h.messageID},
		secret{round: in.round, rounds: in.rounds, spi: s.in, server: r.cfg.Number}, size)
	return s.lastReply
}

// init answers an IKE_SA_INIT request.
func (r *responder) init(h header, b []byte, key saKey) []byte {
	if h.flags&flagResponse != 0 || h.spiR != 0 || h.messageID != 0 {
		r.refused++
		return nil
	}
	if s := r.sas[key]; s != nil {
		return s.initReply
	}
	offered, ke := groups(h.next, b[ikeHeaderLen:])
	if len(offered) == 0 {
		r.refused++
		return saInitError(h, notifyNoProposal, nil)
	}
	if !slices.Contains(offered, ke) {
		r.probes++
		return saInitError(h, notifyInvalidKE, binary.BigEndian.AppendUint16(nil, offered[0]))
	}
	if r.halfOpen >= maxHalfOpen {
		r.refused++
		return nil
	}
	s := &sa{key: key, spiR: spiOf(r.cfg.Number), created: time.Now()}
	s.initReply = saInit(h.spiI, s.spiR, flagResponse)
	r.sas[key] = s
	r.halfOpen++
	return s.initReply
}

// auth takes one round of a login; the last one makes the SA.
func (r *responder) auth(s *sa, in secret) {
	if in.round != in.rounds {
		return
	}
	if old := r.byClient[s.key.client]; old != nil {
		delete(r.sas, old.key)
		delete(r.bySPI, old.in)
	}
	s.established, s.initReply = true, nil
	r.halfOpen--
	s.in, s.out = randomESPSPI(), in.spi
	for r.bySPI[s.in] != nil {
		s.in = randomESPSPI()
	}
	r.bySPI[s.in], r.byClient[s.key.client] = s, s
	s.served = Served{Client: s.key.client, SPI: s.in}
}

// housekeep forgets half-open SAs and speaks to the clients of its own accord.
func (r *responder) housekeep(ctx context.Context) {
	t := time.NewTicker(dpdInterval)
	defer t.Stop()
	for round := 1; ; round++ {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			r.sweep(now, round%serverKeepalive == 0)
		}
	}
}

func (r *responder) sweep(now time.Time, alive bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, s := range r.sas {
		if !s.established {
			if now.Sub(s.created) > halfOpenLife {
				delete(r.sas, key)
				r.halfOpen--
			}
			continue
		}
		h := header{spiI: key.spiI, spiR: s.spiR, exchange: exchangeInformational, messageID: s.dpd}
		s.dpd++
		r.c4500.WriteToUDPAddrPort(onPort4500(skMessage(h, secret{server: r.cfg.Number}, 0)), s.peer)
		if alive {
			r.c4500.WriteToUDPAddrPort(keepalive, s.peer)
		}
	}
}

func (r *responder) stats() ResponderStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := ResponderStats{
		Name: r.cfg.Name, Established: len(r.byClient), HalfOpen: r.halfOpen,
		Probes: r.probes, Refused: r.refused, Strays: map[string]int{}, StrayTotal: r.strayMore,
	}
	for a, n := range r.stray {
		st.Strays[a.String()] = n
	}
	for _, s := range r.byClient {
		st.Clients = append(st.Clients, s.served)
	}
	slices.SortFunc(st.Clients, func(a, b Served) int { return a.Client.Compare(b.Client) })
	return st
}
