package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// appendHead writes all but the records: Spec, numbers, proposers, windows.
// Entry counts and Affinities follow from the records.
func (v *View) appendHead(b []byte) []byte {
	b = appendSpec(b, v.spec)
	b = appendUints(b, uint64(v.last.vip), uint64(v.last.backend), uint64(v.last.gateway), uint64(v.last.slot))
	b = binary.AppendUvarint(b, uint64(len(v.proposers)))
	for i := range v.proposers {
		b = append(b, v.proposers[i][:]...)
	}
	b = binary.AppendUvarint(b, uint64(len(v.windows)))
	for i := range v.windows {
		b = appendWindow(b, &v.windows[i])
	}
	return b
}

func decodeHead(head []byte, format uint16) (core, error) {
	r := &reader{b: head}
	spec := r.spec(format)
	c := newCore(spec.HashKey)
	c.spec = spec
	c.last = numbers{
		vip: VIPID(r.uint32()), backend: BackendID(r.uint32()),
		gateway: GatewayID(r.uint32()), slot: Slot(r.uint(MaxBackends)),
	}
	ids := list(r, "proposers", MaxProposers, 16, (*reader).id)
	for _, id := range ids {
		c.proposers = append(c.proposers, proposer{id: id})
	}
	windows := list(r, "windows", MaxOrigins, 20, (*reader).window)
	if err := r.end("head"); err != nil {
		return core{}, err
	}
	if lowest := spec.Format(); lowest != format {
		return core{}, fmt.Errorf("what format %d holds is in one of format %d", lowest, format)
	}
	for i := range windows {
		if i > 0 && bytes.Compare(windows[i-1].origin[:], windows[i].origin[:]) >= 0 {
			return core{}, errors.New("origins are out of order")
		}
		c.windows[windows[i].origin] = &windows[i]
	}
	if len(ids) > MaxProposers || len(windows) > MaxOrigins {
		return core{}, errors.New("more proposers or origins than there may be")
	}
	return c, c.check()
}

// check refuses a Spec that would break what Apply relies on.
func (c *core) check() error {
	s := c.spec
	var slots [MaxBackends + 1]bool
	for i := range s.Backends {
		b := &s.Backends[i]
		if i > 0 && s.Backends[i-1].ID >= b.ID || b.ID > c.last.backend {
			return errors.New("backends are out of order")
		}
		if b.Slot == 0 || b.Slot > MaxBackends || slots[b.Slot] {
			return fmt.Errorf("slot %d of backend %d is none or taken", b.Slot, b.ID)
		}
		if _, ok := s.VIPByID(b.VIP); !ok {
			return fmt.Errorf("backend %d names VIP %d, which is not there", b.ID, b.VIP)
		}
		if b.Mode > ModeDSR {
			return fmt.Errorf("backend %d has mode %d: %w", b.ID, b.Mode, ErrUnknown)
		}
		slots[b.Slot] = true
	}
	for i := range s.VIPs {
		if i > 0 && s.VIPs[i-1].ID >= s.VIPs[i].ID || s.VIPs[i].ID > c.last.vip {
			return errors.New("VIPs are out of order")
		}
	}
	if name := s.lostCertificate(); name != "" {
		return fmt.Errorf("certificate %s is used, but not there", name)
	}
	if !slices.IsSortedFunc(s.Members, byNodeID) {
		return errors.New("members are out of order")
	}
	if s.ClusterID.IsZero() && (len(s.Backends) > 0 || len(s.Members) > 0) {
		return errors.New("there are members or backends, but no cluster")
	}
	return nil
}

func appendWindow(b []byte, w *window) []byte {
	b = append(b, w.origin[:]...)
	b = appendUints(b, w.boot, w.newest, w.used)
	count := uint64(0)
	w.each(func(uint64, []byte) { count++ })
	b = binary.AppendUvarint(b, count)
	w.each(func(sequence uint64, outcome []byte) {
		b = appendBytes(binary.AppendUvarint(b, sequence), outcome)
	})
	return b
}

// each yields the results that still count, by sequence.
func (w *window) each(yield func(sequence uint64, outcome []byte)) {
	from := uint64(1)
	if w.newest > ResultWindow {
		from = w.newest - ResultWindow + 1
	}
	for n := from; n <= w.newest && n >= from; n++ {
		if outcome, ok := w.result(n); ok {
			yield(n, outcome)
		}
	}
}

func (r *reader) window() (w window) {
	w = window{origin: r.id(), boot: r.uint64(), newest: r.uint64(), used: r.uint64()}
	newest, previous := w.newest, uint64(0)
	for range r.count("results", ResultWindow, 2+sizeOutcome) {
		sequence := r.uint64()
		encoded := r.bytes("outcome", MaxText)
		if r.err != nil {
			return w
		}
		o := &reader{b: encoded}
		o.outcome()
		if err := o.end("outcome"); err != nil {
			r.fail(err)
			return w
		}
		if sequence <= previous || sequence > newest || w.below(sequence) {
			r.fail(fmt.Errorf("result %d lies outside its window", sequence))
			return w
		}
		previous = sequence
		w.store(1, sequence, encoded) // the epoch of new shards
	}
	return w
}

func appendSpec(b []byte, s *Spec) []byte {
	b = append(b, s.ClusterID[:]...)
	b = append(b, s.HashKey[:]...)
	b = appendUints(b, s.Index, s.Generation, uint64(s.Now), uint64(s.TableSize))
	format := s.Format()
	b = appendSettings(b, &s.Settings)
	if format >= 2 {
		b = binary.AppendUvarint(b, uint64(s.Settings.SourceLimit))
	}
	b = binary.AppendUvarint(b, s.Settings.Version)
	b = binary.AppendUvarint(b, uint64(len(s.VIPs)))
	for i := range s.VIPs {
		v := &s.VIPs[i]
		b = binary.AppendUvarint(append(appendVIP(b, v), v.Place), v.Version)
		if format >= 3 {
			b = appendVIPSSTP(b, v)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(s.Backends)))
	for i := range s.Backends {
		b = appendWholeBackend(b, &s.Backends[i])
		if format >= 2 {
			b = append(b, byte(s.Backends[i].Mode))
		}
		if format >= 3 {
			b = appendBackendSSTP(b, &s.Backends[i])
		}
	}
	b = binary.AppendUvarint(b, uint64(len(s.Gateways)))
	for _, g := range s.Gateways {
		b = append(appendAddr(binary.AppendUvarint(b, uint64(g.ID)), g.Addr), g.Owner[:]...)
		b = appendUints(b, g.Index, g.Version)
	}
	b = binary.AppendUvarint(b, uint64(len(s.Members)))
	for i := range s.Members {
		b = binary.AppendUvarint(appendMember(b, &s.Members[i]), s.Members[i].Joined)
	}
	b = binary.AppendUvarint(b, uint64(len(s.Removed)))
	for _, n := range s.Removed {
		b = binary.AppendUvarint(appendString(append(b, n.ID[:]...), n.Name), n.Index)
	}
	b = binary.AppendUvarint(b, uint64(len(s.Tokens)))
	for _, t := range s.Tokens {
		b = append(b, t.Hash[:]...)
		b = binary.AppendUvarint(appendString(b, t.Name), uint64(t.Expires))
		b = append(b, t.UsedBy[:]...)
	}
	b = binary.AppendUvarint(b, uint64(len(s.Secrets)))
	for i := range s.Secrets {
		b = appendSecret(b, &s.Secrets[i])
	}
	b = binary.AppendUvarint(b, uint64(len(s.Certs)))
	for i := range s.Certs {
		b = binary.AppendUvarint(appendCertificate(b, &s.Certs[i]), s.Certs[i].Version)
	}
	return binary.AppendUvarint(b, s.KeyEpoch)
}

func (r *reader) spec(format uint16) *Spec {
	s := &Spec{ClusterID: r.id(), HashKey: r.id()}
	s.Index, s.Generation, s.Now, s.TableSize = r.uint64(), r.uint64(), r.time(), r.uint32()
	s.Settings = r.settings()
	if format >= 2 {
		s.Settings.SourceLimit = r.uint32()
	}
	s.Settings.Version = r.uint64()
	s.VIPs = list(r, "VIPs", MaxVIPs, 6, func(r *reader) VIP {
		v := r.vip()
		v.Place, v.Version = r.uint8(), r.uint64()
		if format >= 3 {
			r.vipSSTP(&v)
		}
		return v
	})
	s.Backends = list(r, "backends", MaxBackends, 10, func(r *reader) Backend {
		b := r.wholeBackend()
		if format >= 2 {
			b.Mode = Mode(r.uint8())
		}
		if format >= 3 {
			r.backendSSTP(&b)
		}
		return b
	})
	s.Gateways = list(r, "gateways", MaxGateways, 20, func(r *reader) Gateway {
		return Gateway{ID: GatewayID(r.uint32()), Addr: r.addr(), Owner: r.id(), Index: r.uint64(), Version: r.uint64()}
	})
	s.Members = list(r, "members", MaxMembers, 20, func(r *reader) Member {
		n := r.member()
		n.Joined = r.uint64()
		return n
	})
	s.Removed = list(r, "removed members", MaxRemoved, 18, func(r *reader) RemovedMember {
		return RemovedMember{ID: r.id(), Name: r.string("name", MaxText), Index: r.uint64()}
	})
	s.Tokens = list(r, "tokens", MaxTokens, 50, func(r *reader) Token {
		return Token{Hash: r.hash(), Name: r.string("name", MaxText), Expires: r.time(), UsedBy: r.id()}
	})
	s.Secrets = list(r, "secrets", MaxSecrets, 3, (*reader).secret)
	s.Certs = list(r, "certificates", MaxCerts, 34, func(r *reader) CertificatePlace {
		c := r.certificate()
		c.Version = r.uint64()
		return c
	})
	s.KeyEpoch = r.uint64()
	return s
}

func appendWholeBackend(b []byte, v *Backend) []byte {
	b = appendBackend(b, v)
	b = appendUints(b, uint64(v.Slot), uint64(v.Admin), v.Version)
	b = appendBool(b, v.Purged)
	b = appendBool(b, v.Filled)
	for _, h := range v.Health {
		b = appendUints(b, uint64(h.Verdict), h.Index, uint64(h.Since), uint64(h.UpSince), h.Voided)
	}
	return b
}

func (r *reader) wholeBackend() Backend {
	v := r.backend()
	v.Slot, v.Admin, v.Version = Slot(r.uint16()), AdminState(r.uint(255)), r.uint64()
	v.Purged = r.bool()
	v.Filled = r.bool()
	for i := range v.Health {
		v.Health[i] = Health{
			Verdict: Verdict(r.uint(255)), Index: r.uint64(),
			Since: r.time(), UpSince: r.time(), Voided: r.uint64(),
		}
	}
	return v
}
