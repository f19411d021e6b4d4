package peer

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"time"
)

// ike answers one IKE message; nil: silence, as for everything this server
// has no SA for (a real one says nothing either). c is the socket of port 4500
// that it came by; nil: it came to port 500.
func (r *responder) ike(c *net.UDPConn, b []byte, from netip.AddrPort) []byte {
	h, ok := parseHeader(b)
	if !ok {
		r.refused++
		return nil
	}
	key := saKey{Key(from.Addr()), h.spiI}
	if h.exchange == exchangeSAInit {
		return r.init(h, b, key)
	}
	s := r.sas[key]
	if s == nil || s.spiR != h.spiR || c == nil {
		if c != nil {
			if m := r.repeated(h); m != nil {
				return m
			}
		}
		r.strayFrom(from.Addr())
		return nil
	}
	s.peer, s.conn = from, c
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

// repeated answers a request that was answered before and now comes from
// somebody else's address: a real server knows an SA by its SPIs alone and
// repeats its reply to whoever asks (RFC 7296 2.1).
func (r *responder) repeated(h header) []byte {
	s := r.byOwnSPI[h.spiR]
	if s == nil || s.key.spiI != h.spiI || s.lastReply == nil || h.messageID != s.messageID || h.flags&flagResponse != 0 {
		return nil
	}
	r.replayed++
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
	r.sas[key], r.byOwnSPI[s.spiR] = s, s
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
		delete(r.byOwnSPI, old.spiR)
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
			r.sweep(now, round%serverKeepalive == 0, !r.paused.Load())
		}
	}
}

func (r *responder) sweep(now time.Time, alive, speak bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, s := range r.sas {
		if !s.established {
			if now.Sub(s.created) > halfOpenLife {
				delete(r.sas, key)
				delete(r.byOwnSPI, s.spiR)
				r.halfOpen--
			}
			continue
		}
		if !speak {
			continue
		}
		h := header{spiI: key.spiI, spiR: s.spiR, exchange: exchangeInformational, messageID: s.dpd}
		s.dpd++
		s.conn.WriteToUDPAddrPort(onPort4500(skMessage(h, secret{server: r.cfg.Number}, 0)), s.peer)
		if alive {
			s.conn.WriteToUDPAddrPort(keepalive, s.peer)
		}
	}
}

func (r *responder) stats() ResponderStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := ResponderStats{
		Name: r.cfg.Name, Established: len(r.byClient), HalfOpen: r.halfOpen,
		Probes: r.probes, Refused: r.refused, Replayed: r.replayed, Errors: r.errors.stats(), Strays: map[string]int{}, StrayTotal: r.strayMore,
	}
	if r.tcp != nil {
		st.TCP = r.tcp.stats()
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
