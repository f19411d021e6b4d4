package sstp

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// connect dials the session's server and, where it is re-encrypted to, checks
// its certificate. It returns why the connection ends, or "".
func (c *session) connect() string {
	s := c.server
	tcp, err := c.dial()
	s.dead.note(c.target.Slot, err == nil, s.tick.Load())
	if err != nil {
		s.metrics.dials.WithLabelValues("failed").Inc()
		s.log.Debug("sstp server not reached", "target", c.target.Name, "addr", c.target.Addr, "err", err)
		return endDial
	}
	s.metrics.dials.WithLabelValues("connected").Inc()
	var back end
	if c.service.Mode == Offload {
		back, err = newPlainEnd(tcp)
	} else {
		_ = tcp.SetDeadline(time.Now().Add(c.limits.DialTimeout))
		back, err = c.dialTLS(tcp)
	}
	if err != nil {
		tcp.Close()
		if c.service.Mode == Offload {
			return endSetup
		}
		s.metrics.dials.WithLabelValues("tls_failed").Inc()
		s.log.Debug("no tls with sstp server", "target", c.target.Name, "addr", c.target.Addr, "err", err)
		if errors.Is(err, errOtherCertificate) {
			s.alarms.otherCertificate(c.target, c.target.cert)
		}
		return endCertificate
	}
	if c.service.Mode == Reencrypt {
		s.alarms.rightCertificate(c.target)
	}
	_ = tcp.SetDeadline(time.Now().Add(c.limits.ResponseTimeout))
	if !c.setBack(back) {
		return endStopped
	}
	return ""
}

// dialOptions let the kernel choose a port when it knows the server: DialTCP
// binds always, and ports of this node alone would be too few for some servers.
var dialOptions = append([]option{{unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1}}, connOptions...)

// dial makes the TCP connection, from the client's own address if the service
// is transparent; then the server's replies must come back through this node.
func (c *session) dial() (*net.TCPConn, error) {
	options, local := dialOptions, netip.AddrPort{}
	dialer := net.Dialer{Timeout: c.limits.DialTimeout, KeepAlive: -1}
	dialer.SetMultipathTCP(false)
	network := "tcp4"
	if c.target.Addr.Addr().Is6() {
		network = "tcp6"
	}
	if c.service.Transparent {
		from := c.client.Addr()
		if from.Is6() != c.target.Addr.Addr().Unmap().Is6() {
			return nil, fmt.Errorf("client and server %v are of different address families: the connection cannot be transparent", c.target.Addr)
		}
		local = netip.AddrPortFrom(from, 0)
		transparent := option{unix.SOL_IP, unix.IP_TRANSPARENT, 1}
		if from.Is6() {
			transparent = option{unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1}
		}
		options = append([]option{transparent}, options...)
	}
	dialer.Control = func(_, _ string, raw syscall.RawConn) error { return setOptions(raw, options) }
	return dialer.DialTCP(c.server.ctx, network, local, c.target.Addr)
}

// dialTLS makes TLS with the server, which must show the certificate that the
// client was shown.
func (c *session) dialTLS(tcp *net.TCPConn) (end, error) {
	l, err := newLink(tcp)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(l, c.target.cert.back)
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	return &tlsEnd{tls: conn, link: l}, nil
}
