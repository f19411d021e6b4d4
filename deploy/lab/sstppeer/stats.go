package sstppeer

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// ServerStats is a server's answer to /stats.
type ServerStats struct {
	Name    string      `json:"name"`
	Now     time.Time   `json:"now"`
	Calls   []CallStats `json:"calls"`   // that stand
	Trusted []string    `json:"trusted"` // hashes that may be bound to now

	Probes    int64            `json:"probes"`    // answered with 401
	Refused   int64            `json:"refused"`   // neither a probe nor a call
	Full      int64            `json:"full"`      // no address was free
	Begun     int64            `json:"begun"`     // calls answered with 200
	Connected int64            `json:"connected"` // whose crypto binding held, of those that have ended
	Ended     map[string]int64 `json:"ended"`     // by reason
	Hashes    map[string]int64 `json:"hashes"`    // named in Call Connected, right or wrong, of calls that have ended
	Clients   map[string]int64 `json:"clients"`   // calls by address that they came from
	In        int64            `json:"in"`        // bytes of packets, of calls that have ended
	Out       int64            `json:"out"`
	Dropped   int64            `json:"dropped"` // packets
}

func newServerStats(name string) ServerStats {
	return ServerStats{Name: name, Calls: []CallStats{}, Ended: map[string]int64{}, Hashes: map[string]int64{}, Clients: map[string]int64{}}
}

// bounded counts under a key, or under "other" where there are too many.
func bounded(m map[string]int64, key string) {
	if _, known := m[key]; !known && len(m) >= maxSeen {
		key = "other"
	}
	m[key]++
}

func (st *ServerStats) answered(r request, head string) {
	if strings.HasPrefix(head, "HTTP/1.1 401 ") {
		st.Probes++
	} else {
		st.Refused++
	}
}

func (st *ServerStats) begun(from netip.Addr) {
	st.Begun++
	bounded(st.Clients, from.String())
}

func (st *ServerStats) ended(c CallStats, reason string) {
	st.In, st.Out, st.Dropped = st.In+c.In, st.Out+c.Out, st.Dropped+c.Dropped
	if !c.Connected.IsZero() {
		st.Connected++
	}
	if c.Hash != "" {
		bounded(st.Hashes, c.Hash)
	}
	bounded(st.Ended, reason)
}

// Stats says how the server fares.
func (s *Server) Stats() ServerStats {
	s.mu.Lock()
	st := s.st
	st.Now, st.Trusted = time.Now(), s.trusted.Load().list()
	st.Ended, st.Hashes, st.Clients = maps.Clone(st.Ended), maps.Clone(st.Hashes), maps.Clone(st.Clients)
	var list []*call
	for _, c := range s.calls {
		list = append(list, c)
	}
	s.mu.Unlock()
	st.Calls = []CallStats{}
	for _, c := range list {
		st.Calls = append(st.Calls, c.stats())
	}
	slices.SortFunc(st.Calls, func(a, b CallStats) int { return int(a.ID) - int(b.ID) })
	return st
}

// trust is the hashes that clients may bind to: hash protocol and hash.
type trust map[byte]map[[32]byte]bool

// newTrust reads the list, or takes the hash of the own certificate.
func newTrust(list []string, own []byte) (*trust, error) {
	t := trust{hashSHA1: {}, hashSHA256: {}}
	if len(list) == 0 {
		if own == nil {
			return nil, errors.New("no certificate and no hash: nothing could be bound to")
		}
		t[hashSHA256][certHash(hashSHA256, own)] = true
		return &t, nil
	}
	for _, text := range list {
		b, err := hex.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("hash %q: %w", text, err)
		}
		var h [32]byte
		copy(h[:], b)
		switch len(b) {
		case sha1.Size:
			t[hashSHA1][h] = true
		case sha256.Size:
			t[hashSHA256][h] = true
		default:
			return nil, fmt.Errorf("hash %q: want %d or %d bytes", text, sha256.Size, sha1.Size)
		}
	}
	return &t, nil
}

func (t *trust) holds(protocol byte, hash [32]byte) bool { return (*t)[protocol][hash] }

// protocols that may be offered: one without a hash would never hold.
func (t *trust) protocols() (mask byte) {
	for protocol, hashes := range *t {
		if len(hashes) > 0 {
			mask |= protocol
		}
	}
	return mask
}

func (t *trust) list() (out []string) {
	for protocol, hashes := range *t {
		for h := range hashes {
			out = append(out, hashText(protocol, h))
		}
	}
	slices.Sort(out)
	return out
}

// reasonOfRead names the end of a stream.
func reasonOfRead(err error) string {
	if errors.Is(err, errFraming) {
		return reasonFraming
	}
	return reasonGone
}
