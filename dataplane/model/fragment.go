package model

import "net/netip"

// FragmentKey names the pieces of one IP datagram (RFC 791, section 3.2; RFC 8200, section 4.5).
type FragmentKey struct {
	Source, Destination netip.Addr
	ID                  uint32 // IPv4: 16 bits
	Protocol            uint8
}

// Fate is what was decided for the first piece.
type Fate uint8

// Fates.
const (
	FateUnknown Fate = iota // not seen, or forgotten
	FateReturn              // a reply to a client
	FateOther               // the server's other traffic: routed by the kernel
)

// FragmentNote is what is to be remembered for the later pieces.
type FragmentNote struct {
	Key  FragmentKey
	Fate Fate
}

// Fragments is a small memory of fates, the oldest note forgotten first. Not safe
// for several goroutines.
type Fragments struct {
	fates map[FragmentKey]Fate
	order []FragmentKey
	limit int
}

// NewFragments makes a memory for limit notes.
func NewFragments(limit int) *Fragments {
	return &Fragments{fates: make(map[FragmentKey]Fate), limit: max(limit, 1)}
}

// Fate is what was noted; it serves as Env.Fragment.
func (f *Fragments) Fate(k FragmentKey) Fate { return f.fates[k] }

// Note remembers; nil is nothing to remember.
func (f *Fragments) Note(n *FragmentNote) {
	if n == nil {
		return
	}
	if _, ok := f.fates[n.Key]; !ok {
		if len(f.order) == f.limit {
			delete(f.fates, f.order[0])
			f.order = f.order[1:]
		}
		f.order = append(f.order, n.Key)
	}
	f.fates[n.Key] = n.Fate
}
