package peer

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// tunnel is one established login.
type tunnel struct {
	vip        netip.Addr
	conn       *net.UDPConn // to port 4500
	spiI, spiR uint64
	in, out    uint32 // ESP SPIs
	server     uint16
	messageID  uint32 // of the next request
	request    []byte // the last IKE_AUTH, as it went out
	foreign    *foreign
}

// login runs IKE_SA_INIT from one port to 500 and IKE_AUTH from another to
// 4500, as a client behind a NAT does (RFC 7296 2.23). f counts what comes from
// elsewhere, now and later.
func login(ctx context.Context, from, vip netip.Addr, kind Kind, f *foreign) (*tunnel, error) {
	t, stop, err := open(ctx, from, vip, f)
	if err != nil {
		return nil, err
	}
	defer stop()
	rounds := 1
	if kind == EAP {
		rounds = eapRounds
	}
	for round := 1; round <= rounds; round++ {
		if err := t.auth(uint8(round), uint8(rounds), kind.authSize()); err != nil {
			t.conn.Close()
			return nil, err
		}
	}
	return t, nil
}

// authSize is the least length of an IKE_AUTH request.
func (k Kind) authSize() int {
	if k == Certificate {
		return authRequestSize
	}
	return 0
}

// open is the first half of a login, IKE_SA_INIT. Until stop is called the end
// of ctx closes the tunnel's socket.
func open(ctx context.Context, from, vip netip.Addr, f *foreign) (t *tunnel, stop func() bool, err error) {
	init, err := listenUDP(ctx, netip.AddrPortFrom(from, 0), 0)
	if err != nil {
		return nil, nil, err
	}
	defer init.Close()
	auth, err := listenUDP(ctx, netip.AddrPortFrom(from, 0), clientReadBuffer)
	if err != nil {
		return nil, nil, err
	}
	stop = context.AfterFunc(ctx, func() { init.Close(); auth.Close() })
	t = &tunnel{vip: vip, conn: auth, spiI: randomSPI(), in: randomESPSPI(), messageID: 1, foreign: f}
	if err := t.saInit(init); err != nil {
		stop()
		auth.Close()
		return nil, nil, err
	}
	return t, stop, nil
}

func (t *tunnel) saInit(conn *net.UDPConn) error {
	return t.exchange(conn, netip.AddrPortFrom(t.vip, 500), saInit(t.spiI, 0, flagInitiator), func(b []byte) bool {
		h, ok := parseHeader(b)
		if !ok || h.spiI != t.spiI || h.spiR == 0 || h.exchange != exchangeSAInit || h.flags&flagResponse == 0 {
			return false
		}
		t.spiR = h.spiR
		return true
	})
}

// authRequest is the next IKE_AUTH, with its marker.
func (t *tunnel) authRequest(round, rounds uint8, size int) []byte {
	h := header{spiI: t.spiI, spiR: t.spiR, exchange: exchangeAuth, flags: flagInitiator, messageID: t.messageID}
	return onPort4500(skMessage(h, secret{round: round, rounds: rounds, spi: t.in}, size))
}

// answered reads the response to the request that is out.
func (t *tunnel) answered(b []byte) bool {
	if len(b) < 4 || [4]byte(b) != marker {
		return false
	}
	h, ok := parseHeader(b[4:])
	if !ok || h.spiI != t.spiI || h.spiR != t.spiR || h.exchange != exchangeAuth || h.flags&flagResponse == 0 || h.messageID != t.messageID {
		return false
	}
	s, ok := openSK(h, b[4:])
	t.out, t.server = s.spi, s.server
	return ok
}

func (t *tunnel) auth(round, rounds uint8, size int) error {
	t.request = t.authRequest(round, rounds, size)
	err := t.exchange(t.conn, netip.AddrPortFrom(t.vip, 4500), t.request, t.answered)
	t.messageID++
	return err
}

// alive is a request that asks for nothing: dead peer detection, and what tells
// the server a new address (RFC 4555 3.5 does it with a notify that only the
// server can read).
func (t *tunnel) alive() []byte {
	h := header{spiI: t.spiI, spiR: t.spiR, exchange: exchangeInformational, flags: flagInitiator, messageID: t.messageID}
	t.messageID++
	return onPort4500(skMessage(h, secret{}, 0))
}

// exchange sends m until accept takes an answer, or gives up.
func (t *tunnel) exchange(conn *net.UDPConn, to netip.AddrPort, m []byte, accept func([]byte) bool) error {
	for _, d := range retransmits {
		if _, err := conn.WriteToUDPAddrPort(m, to); errors.Is(err, net.ErrClosed) {
			return err
		}
		ok, err := t.await(conn, to, d, accept)
		if ok || err != nil {
			return err
		}
	}
	return errNoAnswer
}

// await reads for a time until accept takes something that came from there.
func (t *tunnel) await(conn *net.UDPConn, there netip.AddrPort, d time.Duration, accept func([]byte) bool) (bool, error) {
	buf := make([]byte, 4096)
	conn.SetReadDeadline(time.Now().Add(d))
	defer conn.SetReadDeadline(time.Time{})
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return false, err
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			return false, nil
		}
		if err == nil && t.foreign.heard(from, there) && accept(buf[:n]) {
			return true, nil
		}
	}
}
