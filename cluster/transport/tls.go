package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// serverTLS makes the configuration of one accepted connection. What the client
// offers by ALPN decides whether it must show a certificate. peer is filled
// when it did.
//
// Certificates are verified in VerifyConnection alone, by our own rules:
// crypto/tls would check dates and host names, which mean nothing here.
// Sessions are never resumed, so that each connection passes those rules.
func (t *Transport) serverTLS(id Identity, peer *Peer) *tls.Config {
	base := tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{id.tlsCertificate()},
		SessionTicketsDisabled: true,
	}
	cfg := base.Clone()
	cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		c := base.Clone()
		switch {
		case slices.Contains(h.SupportedProtos, protoRaft):
			c.NextProtos = []string{protoRaft}
		case slices.Contains(h.SupportedProtos, protoRPC):
			c.NextProtos = []string{protoRPC}
		case slices.Contains(h.SupportedProtos, protoJoin):
			c.NextProtos = []string{protoJoin}
			c.ClientAuth = tls.NoClientCert
			return c, nil
		default:
			return nil, errors.New("client speaks none of raft, rpc and join")
		}
		c.ClientAuth = tls.RequireAnyClientCert
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			p, err := checkPeer(cs.PeerCertificates, id, Target{})
			if err != nil {
				return err
			}
			*peer = p
			if cs.NegotiatedProtocol == protoRaft {
				return t.authorize(p)
			}
			return nil // RPC asks after the handshake, to be able to answer
		}
		return c, nil
	}
	return cfg
}

// clientTLS makes the configuration of one dialled connection.
func (t *Transport) clientTLS(id Identity, to Target, proto string, peer *Peer) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{id.tlsCertificate()},
		NextProtos:         []string{proto},
		InsecureSkipVerify: true, // VerifyConnection does it, by our rules
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != proto {
				return fmt.Errorf("peer speaks %q, not %q", cs.NegotiatedProtocol, proto)
			}
			p, err := checkPeer(cs.PeerCertificates, id, to)
			if err != nil {
				return err
			}
			p.Addr = peer.Addr
			*peer = p
			return t.authorize(p)
		},
	}
}

func (t *Transport) authorize(p Peer) error {
	if err := t.deps.Authorize(p.Node, p.PublicKey); err != nil {
		return fmt.Errorf("node %s is refused: %w", p.Node, err)
	}
	return nil
}

// joinTLS makes the configuration of a node that has no certificate yet: it
// believes the one CA whose hash it was given. found receives the server's name
// and the CA's certificate.
func joinTLS(pin CAHash, found func(Name, *x509.Certificate)) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{protoJoin},
		InsecureSkipVerify: true, // VerifyConnection does it, by the pin
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != protoJoin {
				return fmt.Errorf("peer speaks %q, not %q", cs.NegotiatedProtocol, protoJoin)
			}
			for _, c := range cs.PeerCertificates[1:] { // a server always shows one (RFC 8446 section 4.4.2.4)
				if HashCA(c.Raw) != pin {
					continue
				}
				root, err := parseRoot(c.Raw)
				if err != nil {
					return err
				}
				name, _, err := checkLeaf(cs.PeerCertificates[0], []*x509.Certificate{root})
				if err != nil {
					return err
				}
				found(name, root)
				return nil
			}
			return ErrWrongCA
		},
	}
}

// greetTLS makes the configuration of a node that only wants to know who is
// there.
func greetTLS(found *Name) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{protoJoin},
		InsecureSkipVerify: true, // nothing is believed, and nothing said
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			if cs.NegotiatedProtocol != protoJoin {
				return fmt.Errorf("peer speaks %q, not %q", cs.NegotiatedProtocol, protoJoin)
			}
			*found, err = parseName(cs.PeerCertificates[0].URIs)
			return err
		},
	}
}
