package state

// MayTake reports whether a record may point at such a backend after a
// replacement: up or draining.
func (s Stance) MayTake() bool { return s == StanceTake || s == StanceKeep }

// Known reports whether a record that names such a backend counts at all.
func (s Stance) Known() bool { return s == StanceTake || s == StanceKeep || s == StanceLeave }

// Serves reports whether a VIP has a service of this class.
func (s *Spec) Serves(id VIPID, c Class) bool {
	v, ok := s.VIPByID(id)
	if !ok {
		return false
	}
	return c == ClassIKE || c == ClassTCP && v.SSTP != SSTPOff
}

// Full reports whether the backend holds as many clients as its Limit allows. It
// stays full until some of them are gone: a client that comes and goes at the
// limit must not change everybody's tables each time.
func (b *Backend) Full() bool { return b.Limit > 0 && b.Filled }

// fill brings Filled up to date with Entries and Limit: whoever changes one of
// them calls it.
func (b *Backend) fill() {
	n := b.Entries[ClassIKE-1]
	switch {
	case b.Limit == 0, n <= b.Limit-b.slack():
		b.Filled = false
	case n >= b.Limit:
		b.Filled = true
	}
}

// slack is how many records below its Limit a full backend takes clients again:
// a twentieth, but two at least. With one the first client to go would end it,
// and the next to come begin it.
func (b *Backend) slack() uint32 { return min(b.Limit, max(2, b.Limit/20)) }

// candidate reports whether the never-empty rule may count b as up.
func (b *Backend) candidate() bool { return b.Admin == AdminEnabled && b.Weight > 0 }

// judged is the stance by the backend's own state alone, the never-empty rule
// left out. The pool must have the service.
func (b *Backend) judged(c Class) Stance {
	leaves := b.Admin == AdminRemoved || b.Admin == AdminOffline || b.Health[c-1].Verdict != VerdictUp
	if b.Mode == ModeDSR {
		return b.judgedDSR(c, leaves)
	}
	switch {
	case b.voided(c):
		return StanceVoid
	case leaves:
		return StanceLeave
	case b.Admin == AdminDrain, b.Weight == 0, b.Full():
		return StanceKeep
	}
	return StanceTake
}

// judgedDSR knows no StanceLeave: nothing that a DSR backend's clients send may
// replace a record (no answer is seen), so a client whose logins go elsewhere
// would stay torn in two. TCP has no records there: what keeps known clients
// only, keeps nobody; the limit, which counts records of IKE, says nothing.
func (b *Backend) judgedDSR(c Class, leaves bool) Stance {
	idle := b.Admin == AdminDrain || b.Weight == 0
	switch {
	case leaves, c == ClassTCP && idle:
		return StanceVoid
	case c == ClassIKE && (idle || b.Full()):
		return StanceKeep
	}
	return StanceTake
}

// voided reports whether the entries count as absent by somebody's word: a
// purge or VoidBackend.
func (b *Backend) voided(c Class) bool {
	return b.Admin == AdminRemoved && b.Purged || b.Health[c-1].Voided != 0
}

// Stance says what the data plane may do with a backend: the columns of the
// affinity table.
//
// Never-empty rule: when no backend of the pool (VIP and class) takes clients,
// every enabled one with a weight counts as up, whatever the verdicts say,
// because an empty table helps nobody; those whose entries were voided only if
// there is no other.
func (s *Spec) Stance(b *Backend, c Class) Stance {
	if c < 1 || int(c) > len(Classes) || !s.Serves(b.VIP, c) {
		return StanceNone
	}
	own := b.judged(c)
	if own == StanceTake || own == StanceKeep || !b.candidate() {
		return own
	}
	p := s.pool(b.VIP, c)
	if p.taken || b.voided(c) && p.candidates > 0 {
		return own
	}
	if b.Full() && !(b.Mode == ModeDSR && c == ClassTCP) {
		return StanceKeep
	}
	return StanceTake
}

// pool sums up what the never-empty rule needs to know of a VIP and class.
type pool struct {
	taken      bool // a backend takes clients by its own state
	candidates int  // backends that the rule may count as up, voided ones left out
	voided     int  // backends that it may count as up if there is no candidate
}

func (s *Spec) pool(id VIPID, c Class) (p pool) {
	for i := range s.Backends {
		b := &s.Backends[i]
		if b.VIP != id {
			continue
		}
		own := b.judged(c)
		switch {
		case own == StanceTake:
			p.taken = true
		case !b.candidate():
		case b.voided(c):
			p.voided++
		default:
			p.candidates++
		}
	}
	return p
}

// MayTake reports whether a replaced record may point at b.
func (s *Spec) MayTake(b *Backend, c Class) bool { return s.Stance(b, c).MayTake() }

// MayVoid reports whether VoidBackend would be accepted: down for VoidAfter
// and not voided yet, and another backend of the pool takes its clients (else
// voiding would only forget where they are). The leader asks before proposing;
// Apply judges again.
func (s *Spec) MayVoid(b *Backend, c Class, now Time) bool {
	return s.voidFault(b, c, now) == ""
}

// Dead reports whether a record's time is up, or counts as absent for good:
// what Expire removes. Unheard records end UnheardTimeout after Heard, however
// often they are touched.
func (s *Spec) Dead(a Affinity, now Time) bool {
	b, ok := s.BackendByID(a.Backend)
	if !ok || !s.Stance(b, a.Class).Known() {
		return true
	}
	return s.Settings.outlived(&a, now)
}

func (s *Settings) outlived(a *Affinity, now Time) bool {
	if now.Sub(a.Seen) >= s.Lifetime(a.State) {
		return true
	}
	return a.State == Confirmed && now.Sub(a.Heard) >= s.UnheardTimeout
}
