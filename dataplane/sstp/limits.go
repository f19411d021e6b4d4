package sstp

import "sync"

// sources counts connections, in all and of each client key. The map has an
// entry only for a key that has a connection, so the limit of connections
// bounds it.
type sources struct {
	mu    sync.Mutex
	total int
	by    map[[16]byte]source
}

// source is what one client key has: connections, and those of them that are
// not through with their handshake.
type source struct{ connections, handshakes int }

func (s *sources) init() { s.by = map[[16]byte]source{} }

// sourceHandshakes bounds the handshakes of one source that are under way, so
// that no one client can keep the others waiting.
func sourceHandshakes(l *Limits) int { return max(l.Handshakes/32, 1) }

// enter counts a connection in, or says why not.
func (s *sources) enter(key [16]byte, l *Limits) (refused string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.by[key]
	switch {
	case s.total >= l.Connections:
		return refusedConnections
	case n.connections >= l.PerSource:
		return refusedSource
	case n.handshakes >= sourceHandshakes(l):
		return refusedHandshakes
	}
	s.total++
	s.by[key] = source{n.connections + 1, n.handshakes + 1}
	return ""
}

// settled counts a connection's handshake out.
func (s *sources) settled(key [16]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.by[key]
	n.handshakes--
	s.by[key] = n
}

// leave counts a connection out, and its handshake if that did not end.
func (s *sources) leave(key [16]byte, handshaking bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.by[key]
	n.connections--
	if handshaking {
		n.handshakes--
	}
	s.total--
	if n.connections == 0 {
		delete(s.by, key)
		return
	}
	s.by[key] = n
}

func (s *sources) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}
