package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/raft"
)

// The cluster secret opens what the agreement holds sealed: the CA, the keys of the
// gossip, of certificates and of tickets. A file with one wrong digit looks like a
// good one, so it is tried at the start against a value that the cluster has
// sealed. A node whose secret fails can neither gossip nor sign nor show
// certificates: it says so, holds no gateway, leads nothing where another voter can,
// seals nothing, and asks the members for the secret.

const (
	secretSoon    = 50 * time.Millisecond
	secretEvery   = time.Second     // between two tries
	secretAsk     = 2 * time.Second // for one member's answer
	yieldPatience = 2 * time.Second // for another voter to take the leadership
)

type secretAnswer struct {
	Secret []byte `json:"secret"`
}

// runSecret proves the cluster secret, once: it never changes, and heals the files
// that the agreement holds, too. It returns when that is done.
func (m *member) runSecret(ctx context.Context) error {
	for {
		_, version, err := m.openSealed(secretGossip)
		if err == nil {
			m.secretProved.Store(true)
			m.secretFault.set(nil)
			if err := m.mendCertificates(); m.certsFault.set(err) {
				m.log.Error("certificates of this node", "error", err.Error())
			}
			if m.certsFault.get() == "" {
				return nil
			}
			version = 0
		}
		wait := secretSoon // nothing that is sealed has arrived yet
		if m.certsFault.get() != "" {
			wait = secretEvery
		}
		if version > 0 {
			err := m.fetchSecret(ctx)
			if err == nil {
				continue
			}
			if m.secretFault.set(err) {
				m.log.Error("cluster secret", "error", err.Error())
			}
			wait = secretEvery
		}
		if !pause(ctx, wait) {
			return nil
		}
	}
}

// fetchSecret asks the members, by their keys in the agreement, and takes an answer
// that opens what the cluster has sealed. Nil: the secret is good now.
func (m *member) fetchSecret(ctx context.Context) error {
	spec := m.spec()
	why := errors.New("no other member is known that could give it")
	for i := range spec.Members {
		o := &spec.Members[i]
		if o.ID == m.self {
			continue
		}
		secret, err := m.askSecret(ctx, spec, o)
		if err == nil {
			err = m.ids.SetSecret(secret)
		}
		if err == nil {
			m.log.Info("cluster secret taken from a member", "member", o.Name)
			return nil
		}
		why = fmt.Errorf("asked %s: %w", o.Name, err)
	}
	return fmt.Errorf("cluster.secret does not open what the cluster has sealed: damaged, or of another cluster; %w", why)
}

func (m *member) askSecret(ctx context.Context, spec *state.Spec, o *state.Member) (secret [32]byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, secretAsk)
	defer cancel()
	var out secretAnswer
	err = m.transport.Call(ctx, transport.Target{Addr: o.Cluster, Key: o.PublicKey}, pathSecret, struct{}{}, &out)
	var refused *transport.StatusError
	switch {
	case errors.As(err, &refused) && refused.Code == http.StatusNotFound:
		return secret, errors.New("it runs a version that gives none")
	case err != nil:
		return secret, err
	case len(out.Secret) != len(secret):
		return secret, fmt.Errorf("it answered %d bytes", len(out.Secret))
	}
	secret = [32]byte(out.Secret)
	s, ok := spec.SecretByName(secretGossip)
	if !ok {
		return secret, errors.New("nothing sealed is agreed")
	}
	if _, err := transport.Open(secret, secretGossip, s.Sealed); err != nil {
		return secret, errors.New("what it gave does not open it either")
	}
	return secret, nil
}

// serveSecret gives the secret to a member, known by its key in the agreement: it
// was handed over when that member joined, too.
func (m *member) serveSecret(p transport.Peer) (secretAnswer, error) {
	switch {
	case !hasKey(m.spec().Members, p.PublicKey):
		return secretAnswer{}, &transport.StatusError{Code: http.StatusForbidden, Reason: "the caller is in no member list that this node has"}
	case !m.secretProved.Load():
		return secretAnswer{}, &transport.StatusError{Code: http.StatusServiceUnavailable, Reason: "this node's own secret is not proved"}
	}
	secret := m.ids.Identity().Secret
	return secretAnswer{Secret: secret[:]}, nil
}

// seal seals a value for the agreement; not with a secret that nobody else has.
func (m *member) seal(name string, plain []byte) ([]byte, error) {
	if !m.secretProved.Load() {
		return nil, fmt.Errorf("seal %s: the cluster secret of this node is not proved: %s", name, m.secretFault.get())
	}
	return transport.Seal(m.ids.Identity().Secret, name, plain)
}

// giveUpOffice hands the leadership over where this node's secret is no good: as a
// leader it could neither sign nor seal. Where no other voter is live it stays.
func (m *member) giveUpOffice(office context.Context) {
	if m.secretFault.get() == "" || m.replica.Status().Role != raft.RoleLeader {
		return
	}
	if _, live := m.votersWithout(m.self); live == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(office, yieldPatience)
	defer cancel()
	if err := m.replica.TransferLeadership(ctx); err != nil {
		m.log.Warn("hand the leadership over: the cluster secret is no good here", "error", err.Error())
	}
}
