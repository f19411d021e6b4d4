package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Limits and times of a responder.
const (
	maxHalfOpen      = 1 << 17          // forged SA_INITs: beyond it they are refused
	halfOpenLife     = 10 * time.Second // without IKE_AUTH
	dpdInterval      = 5 * time.Second  // INFORMATIONAL to each client, as RRAS and strongSwan do
	serverKeepalive  = 2                // every so many DPD intervals a keepalive too
	maxStrayClients  = 1 << 14          // distinct addresses remembered
	authResponseSize = 1900             // with a certificate: leaves as two IP fragments
)

// ResponderConfig is one server.
type ResponderConfig struct {
	Name    string       `json:"name"`
	Number  uint16       `json:"number"` // travels in every echo; not 0
	Addrs   []netip.Addr `json:"addrs"`  // it serves on all of them: both families, with DSR the VIPs too
	TCP     bool         `json:"tcp"`    // SSTP-shaped service on TCP 443
	Control string       `json:"control"`
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
	Replayed    int64          `json:"replayed"`    // requests that came again from another client's address
	Strays      map[string]int `json:"strays"`      // by client: packets for an SA that is not here
	StrayTotal  int64          `json:"stray_total"` //
	Clients     []Served       `json:"clients"`
	Errors      ErrorStats     `json:"errors"` // of ICMP
	TCP         TCPStats       `json:"tcp"`
}

type saKey struct {
	client netip.Addr // Key of its address
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
	conn        *net.UDPConn // that it speaks through, port 4500
	dpd         uint32       // message ID of our own requests
	served      Served
}

type responder struct {
	cfg       ResponderConfig
	paused    atomic.Bool // nothing is sent of its own accord
	errors    *errorLog
	tcp       *tcpServer // nil: no such service
	mu        sync.Mutex
	sas       map[saKey]*sa
	byOwnSPI  map[uint64]*sa // by responder SPI
	bySPI     map[uint32]*sa
	byClient  map[netip.Addr]*sa // established: a new login replaces it (RFC 7296 2.4 INITIAL_CONTACT)
	halfOpen  int
	probes    int64
	refused   int64
	replayed  int64
	stray     map[netip.Addr]int
	strayMore int64
}

func newResponder(cfg ResponderConfig) *responder {
	return &responder{
		cfg: cfg, errors: newErrorLog(cfg.Addrs), sas: map[saKey]*sa{}, byOwnSPI: map[uint64]*sa{}, bySPI: map[uint32]*sa{},
		byClient: map[netip.Addr]*sa{}, stray: map[netip.Addr]int{},
	}
}

// RunResponder serves until ctx ends.
func RunResponder(ctx context.Context, cfg ResponderConfig) error {
	r := newResponder(cfg)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, a := range cfg.Addrs {
		for port, handle := range map[uint16]func(*net.UDPConn, []byte, netip.AddrPort){500: r.on500, 4500: r.on4500} {
			c, err := listenUDP(ctx, netip.AddrPortFrom(a, port), socketBuffer)
			if err != nil {
				cancel(err)
				return err
			}
			context.AfterFunc(ctx, func() { c.Close() })
			wg.Go(func() { r.read(c, handle) })
		}
	}
	if err := r.errors.start(ctx, &wg); err != nil {
		cancel(err)
		return err
	}
	if cfg.TCP {
		var err error
		if r.tcp, err = startTCPServer(ctx, cfg, &wg); err != nil {
			cancel(err)
			return err
		}
	}
	wg.Go(func() { r.housekeep(ctx) })
	wg.Go(func() {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { Reply(w, r.stats()) })
		handlePause(mux, &r.paused)
		cancel(ServeControl(ctx, cfg.Control, mux))
	})
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (r *responder) read(c *net.UDPConn, handle func(*net.UDPConn, []byte, netip.AddrPort)) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier packet
		}
		handle(c, buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	}
}

func (r *responder) on500(c *net.UDPConn, b []byte, from netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.ike(nil, b, from); m != nil {
		c.WriteToUDPAddrPort(m, from)
	}
}

func (r *responder) on4500(c *net.UDPConn, b []byte, from netip.AddrPort) {
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
		r.esp(c, b, from)
		return
	}
	if m := r.ike(c, b[4:], from); m != nil {
		c.WriteToUDPAddrPort(onPort4500(m), from)
	}
}

// esp echoes a data packet of an SA of ours; anything else is a stray. An echo
// of a size that was asked for honours the path's MTU, so that routers on the
// way have something to say.
func (r *responder) esp(c *net.UDPConn, b []byte, from netip.AddrPort) {
	d, ok := parseData(b)
	s := r.bySPI[binary.BigEndian.Uint32(b)]
	if !ok || s == nil || s.key.client != Key(from.Addr()) {
		r.strayFrom(from.Addr())
		return
	}
	s.peer, s.conn = from, c
	s.served.Received++
	s.served.LastSeq = max(s.served.LastSeq, d.seq)
	s.served.Last = time.Now()
	echo := data{spi: s.out, seq: d.seq, server: r.cfg.Number}.encodeFor(localOf(c), from, min(int(d.want), maxEcho))
	if d.want == 0 {
		c.WriteToUDPAddrPort(echo, from)
		return
	}
	// Everything is written under the lock: nothing else has the DF bit.
	if honourPathMTU(c, true) == nil {
		c.WriteToUDPAddrPort(echo, from)
	}
	honourPathMTU(c, false)
}

const maxEcho = 8192 // bytes

func (r *responder) strayFrom(a netip.Addr) {
	a = Key(a)
	r.strayMore++
	if _, known := r.stray[a]; known || len(r.stray) < maxStrayClients {
		r.stray[a]++
	}
}
