package raft

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// peersEvery is how often changed marks go to the disk: an old copy of a disk
// is older than that.
const peersEvery = 10 * time.Second

// peers remembers how far each peer's store had come, so that a peer whose disk
// was rolled back can be told before its raft starts.
type peers struct {
	self state.NodeID

	mu    sync.Mutex
	marks map[state.NodeID]Mark
	dirty bool
}

func newPeers(self state.NodeID) *peers {
	return &peers{self: self, marks: map[state.NodeID]Mark{}}
}

// RememberPeer notes how far a peer says its store is (Status.Mark, gossiped). A
// mark never falls. It is on the disk within 10 seconds.
func (r *Replica) RememberPeer(id state.NodeID, m Mark) {
	p := r.peers
	if id.IsZero() || id == p.self {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old, known := p.marks[id]
	if !known && len(p.marks) >= maxPeers {
		delete(p.marks, oldest(p.marks))
	}
	m.Term = max(m.Term, old.Term)
	if m.LogTerm < old.LogTerm || m.LogTerm == old.LogTerm && m.Index < old.Index {
		m.LogTerm, m.Index = old.LogTerm, old.Index
	}
	if m != old || !known {
		p.marks[id] = m
		p.dirty = true
	}
}

// ForgetPeer drops the mark of a node that was removed for good.
func (r *Replica) ForgetPeer(id state.NodeID) {
	r.peers.mu.Lock()
	defer r.peers.mu.Unlock()
	if _, ok := r.peers.marks[id]; ok {
		delete(r.peers.marks, id)
		r.peers.dirty = true
	}
}

// PeerMemory gives what is remembered. It is complete once the store is open,
// which is before Vet is asked and before Started.
func (r *Replica) PeerMemory() map[state.NodeID]Mark {
	r.peers.mu.Lock()
	defer r.peers.mu.Unlock()
	return maps.Clone(r.peers.marks)
}

// Own gives how far this node's store was at the start, for peers that ask
// before raft runs; Status().Mark goes on from there.
func (r *Replica) Own() Mark {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.own
}

// oldest gives the mark that is furthest behind: that of a node long gone.
func oldest(marks map[state.NodeID]Mark) state.NodeID {
	ids := slices.SortedFunc(maps.Keys(marks), func(a, b state.NodeID) int {
		if marks[a] != marks[b] {
			if marks[a].Before(marks[b]) {
				return -1
			}
			return 1
		}
		return slices.Compare(a[:], b[:])
	})
	return ids[0]
}

// One mark on the disk: node ID 16 | term u64 | log term u64 | index u64, big
// endian, in the order of the IDs.
const markSize = 16 + 3*8

func (p *peers) load(g *guard) error {
	b, err := g.Get(keyPeers)
	if err != nil {
		return err
	}
	if len(b)%markSize != 0 {
		return fmt.Errorf("peer memory has %d bytes", len(b))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for ; len(b) > 0; b = b[markSize:] {
		p.marks[state.NodeID(b[:16])] = Mark{
			Term:    binary.BigEndian.Uint64(b[16:]),
			LogTerm: binary.BigEndian.Uint64(b[24:]),
			Index:   binary.BigEndian.Uint64(b[32:]),
		}
	}
	return nil
}

func (p *peers) save(g *guard) error {
	p.mu.Lock()
	if !p.dirty {
		p.mu.Unlock()
		return nil
	}
	var b []byte
	for _, id := range slices.SortedFunc(maps.Keys(p.marks), func(a, b state.NodeID) int { return slices.Compare(a[:], b[:]) }) {
		m := p.marks[id]
		b = append(b, id[:]...)
		b = binary.BigEndian.AppendUint64(b, m.Term)
		b = binary.BigEndian.AppendUint64(b, m.LogTerm)
		b = binary.BigEndian.AppendUint64(b, m.Index)
	}
	p.dirty = false
	p.mu.Unlock()
	return g.own(func() error { return g.store.Set(keyPeers, b) })
}

// keepPeers writes the memory now and then, and at the end.
func (r *Replica) keepPeers() {
	t := time.NewTicker(peersEvery)
	defer t.Stop()
	g := r.guard.Load()
	for {
		select {
		case <-r.parkedCh:
			return
		case <-r.done:
			if err := r.peers.save(g); err != nil {
				r.log.Warn("peer memory not written", "error", err)
			}
			return
		case <-t.C:
			if err := r.peers.save(g); err != nil {
				r.parkStore("store failed: " + err.Error())
				return
			}
		}
	}
}
