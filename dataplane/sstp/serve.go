package sstp

import (
	"crypto/tls"
	"errors"
	"io"
	"os"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/sstp/control"
	"github.com/vpnlb/vpnlb/dataplane/sstp/head"
)

// workerWait is how long a worker waits for its next connection.
const workerWait = 5 * time.Second

// serve takes a new connection up to the point where bytes are relayed, and
// leaves that to two new goroutines: the large stack that a handshake needs is
// not kept for the hours of a call. The next handshake gets it, if one comes
// soon: growing it anew costs 7 percent of a handshake.
func (s *Server) serve(c *session) {
	wait := time.NewTimer(workerWait)
	defer wait.Stop()
	for {
		if reason := c.open(); reason != "" {
			c.end(reason)
			c.leave()
		}
		wait.Reset(workerWait)
		select {
		case c = <-s.handoff:
		case <-wait.C:
			return
		case <-s.ctx.Done():
			return
		}
	}
}

// open returns why the connection ends, or "" when the relay runs.
func (c *session) open() string {
	s := c.server
	ok := c.handshake()
	c.turn.leave()
	c.turn, c.front.link.turn = nil, nil
	s.sources.settled(c.key)
	c.handshook = true
	if !ok {
		return endHandshake
	}
	c.setPhase(phaseHead)
	_ = c.front.socket().SetReadDeadline(time.Now().Add(c.limits.HeadTimeout))
	request, early, ok := c.readRequest()
	if !ok {
		return endHead
	}
	c.setPhase(phaseDialing)
	reason := c.connect()
	if reason != "" {
		c.refuse(502)
		return reason
	}
	c.setPhase(phaseResponse)
	return c.exchange(request, early)
}

// handshake brings up TLS with the certificate that the client's server expects.
func (c *session) handshake() bool {
	s := c.server
	l, err := newLink(c.front.link.tcp)
	if err != nil {
		return false
	}
	l.turn = c.turn
	began := time.Now()
	_ = l.tcp.SetDeadline(began.Add(c.limits.HandshakeTimeout))
	conn := tls.Server(l, c.target.cert.front)
	c.mu.Lock() // end reads it
	c.front.link, c.front.tls = l, conn
	c.mu.Unlock()
	if err := conn.Handshake(); err != nil {
		s.metrics.handshakes.WithLabelValues(handshakeFault(err), "").Inc()
		return false
	}
	state := conn.ConnectionState()
	c.tlsInfo = tlsText(&state)
	c.settled.Store(true)
	result := "full"
	if state.DidResume {
		result = "resumed"
	}
	s.metrics.handshakes.WithLabelValues(result, tls.VersionName(state.Version)).Inc()
	s.metrics.handshakeSeconds.Observe(time.Since(began).Seconds())
	return true
}

func handshakeFault(err error) string {
	var record tls.RecordHeaderError
	switch {
	case errors.Is(err, errCrowded):
		return "crowded"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.As(err, &record):
		return "not_tls"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed"
	}
	return "failed"
}

// readRequest reads the client's head, and answers one that is not good. What
// came with it belongs to the stream.
func (c *session) readRequest() (request head.Request, early []byte, ok bool) {
	raw, early, err := readHead(&c.front)
	if err == nil {
		request, err = head.ParseRequest(raw)
	}
	if err == nil {
		c.server.metrics.heads.WithLabelValues(headGood).Inc()
		return request, early, true
	}
	reason, bad := err.(head.Reason)
	switch {
	case bad:
		c.server.metrics.heads.WithLabelValues(reason.String()).Inc()
		c.answer(c.service.decoyHead())
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.server.metrics.heads.WithLabelValues(headTimeout).Inc()
	default:
		c.server.metrics.heads.WithLabelValues(headClosed).Inc()
	}
	return head.Request{}, nil, false
}

// readHead reads up to the end of a head, and what came with it. The waiting
// holds no more than the bytes that are there.
func readHead(e end) (raw, behind []byte, err error) {
	var held []byte
	for {
		b, n, err := e.receive()
		seen := len(held)
		if n > 0 {
			held = append(held, b[:n]...)
			putBuffer(b)
		}
		if at := head.End(held, seen); at >= 0 && at <= head.MaxBytes {
			return held[:at], held[at:], nil
		}
		switch {
		case len(held) >= head.MaxBytes:
			return nil, nil, head.TooLarge
		case err != nil:
			return nil, nil, err
		}
	}
}

// exchange sends the request, relays the server's answer, and starts the relay
// if it is a 200.
func (c *session) exchange(request head.Request, early []byte) string {
	s := c.server
	c.mu.Lock()
	back := c.back
	c.mu.Unlock()
	first := append(request.Append(make([]byte, 0, 1024)), early...)
	if err := back.send(first); err != nil {
		c.refuse(502)
		return endResponse
	}
	c.heed(control.Client, early)
	var response head.Response
	raw, behind, err := readHead(back)
	if err == nil {
		response, err = head.ParseResponse(raw)
	}
	if err != nil {
		s.metrics.responses.WithLabelValues("bad").Inc()
		s.log.Debug("server's answer is not good", "target", c.target.Name, "err", err)
		c.refuse(502)
		return endResponse
	}
	s.metrics.responses.WithLabelValues(statusClass(response.Status)).Inc()
	if response.Status != 200 {
		c.answer(response.Append(nil))
		return endStatus
	}
	_ = c.front.socket().SetWriteDeadline(time.Now().Add(c.limits.HeadTimeout))
	if err := c.front.send(append(response.Append(make([]byte, 0, 512)), behind...)); err != nil {
		return endClient
	}
	c.heed(control.Server, behind)
	if c.front.socket().SetWriteDeadline(time.Time{}) != nil || back.socket().SetWriteDeadline(time.Time{}) != nil { // pump sets those for reads
		return endSetup
	}
	c.relay()
	return ""
}

func statusClass(status int) string {
	return string([]byte{byte('0' + status/100), 'x', 'x'})
}

// refuse answers in the server's place.
func (c *session) refuse(status int) {
	r := head.Response{Status: status}
	c.answer(r.Append(nil))
}

const (
	lingerTime  = time.Second // for an answer to arrive before the connection goes
	lingerBytes = 16 << 10    // of what the client still sends meanwhile
)

// answer writes the last words to a client. Closing with bytes unread would
// reset the connection, and take the answer away from the client: so it is given
// a moment to read and to close.
func (c *session) answer(p []byte) {
	_ = c.front.socket().SetDeadline(time.Now().Add(lingerTime))
	if c.front.send(p) != nil || c.front.shut(false) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c.front.link.tcp, lingerBytes)
}
