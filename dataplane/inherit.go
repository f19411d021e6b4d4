package dataplane

import (
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
)

// inheritProofs moves the proofs without an answer out of another schema's map, which
// nobody writes any more: what a server proved while that one's program still ran is
// proved once only by a login with a certificate. A map of another layout is left.
func (p *Plane) inheritProofs(pin string) {
	n, err := p.moveProofs(pin)
	if err != nil {
		p.log.Warn("evidence of the former version is lost: its clients prove themselves at their next login", "map", pin, "error", err)
	} else if n > 0 {
		p.log.Info("took over evidence of the former version", "map", pin, "proofs", n)
	}
}

func (p *Plane) moveProofs(pin string) (n int, err error) {
	old, err := ebpf.LoadPinnedMap(filepath.Join(p.cfg.PinDir, pin), nil)
	if err != nil {
		return 0, err
	}
	defer old.Close()
	own := p.proofs.pending
	if old.Type() != own.Type() || old.KeySize() != own.KeySize() || old.ValueSize() != own.ValueSize() {
		return 0, nil
	}
	p.proofs.mu.Lock() // the owner of what is taken and put back
	defer p.proofs.mu.Unlock()
	for b := range mapBatches[bpf.PlaneClientKey, bpf.PlanePending](old) {
		if b.err != nil {
			return n, b.err
		}
		for i, k := range b.keys {
			if err := p.proofs.putBack(k, b.values[i]); err != nil {
				return n, err
			}
			n++
		}
	}
	p.proofs.again.Store(true)
	return n, nil
}
