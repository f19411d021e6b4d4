package sstp

import (
	"errors"
	"os"
)

// Apply makes d what the server does: it opens and closes listeners, and takes
// certificates, ticket keys, servers and limits for connections that come from
// now on; those that stand keep what they began with. It tells all faults at
// once; what is not faulty works.
func (s *Server) Apply(d Desired) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("apply to sstp server: it has stopped")
	}
	p, err := s.newPlan(&d)
	if p == nil {
		return err
	}
	s.plan.Store(p)
	s.gate.set(p.limits.Handshakes)
	s.alarms.keep(p.targets)
	opened := s.openListeners(p)
	s.faults = faultsOf(err, opened)
	return errors.Join(err, opened)
}

// Listeners are duplicates of the listening sockets by "addr:port", for the
// process that comes after this one. The caller closes them.
func (s *Server) Listeners() map[string]*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]*os.File{}
	for at, l := range s.listeners {
		f, err := l.tcp.File()
		if err != nil {
			s.log.Error("listener cannot be handed over", "addr", at, "err", err)
			continue
		}
		out[at.String()] = f
	}
	return out
}

// faultsOf lists joined errors one by one.
func faultsOf(all ...error) (out []string) {
	for _, err := range all {
		switch joined := err.(type) {
		case nil:
		case interface{ Unwrap() []error }:
			out = append(out, faultsOf(joined.Unwrap()...)...)
		default:
			out = append(out, err.Error())
		}
	}
	return out
}
