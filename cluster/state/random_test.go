package state

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// chaos draws commands that are mostly right for a state, sometimes wrong.
type chaos struct {
	*rand.Rand
	clients uint32
}

func (c *chaos) one(n int) bool { return c.IntN(n) == 0 }

func (c *chaos) key() Key {
	n := uint32(c.IntN(int(c.clients)))
	k := client4(n)
	if n%5 == 4 {
		k = client6(byte(n), byte(n%2))
	}
	k.Class = Classes[c.IntN(len(Classes))]
	return k
}

func (c *chaos) backend(s *Spec) *Backend {
	if len(s.Backends) == 0 || c.one(20) {
		return &Backend{ID: 999, Name: "none", Weight: 1}
	}
	return &s.Backends[c.IntN(len(s.Backends))]
}

func (c *chaos) expect(v uint64) uint64 {
	if c.one(10) {
		return v + 1
	}
	return v
}

func (c *chaos) command(v *View) Command {
	s := v.Spec()
	switch c.IntN(30) {
	case 0:
		return c.putVIP(s)
	case 1, 2:
		return c.putBackend(s)
	case 3:
		b := c.backend(s)
		return SetBackendAdmin{ID: b.ID, Admin: AdminState(1 + c.IntN(3)), Expect: c.expect(b.Version)}
	case 4:
		b := c.backend(s)
		return RemoveBackend{ID: b.ID, Purge: c.one(3), Expect: c.expect(b.Version)}
	case 5, 6, 7, 8:
		b, class := c.backend(s), Classes[c.IntN(2)]
		return SetHealth{Backend: b.ID, Class: class, Verdict: Verdict(1 + c.IntN(5)/3), Previous: c.expect(b.Health[class-1].Index)}
	case 9, 10:
		b, class := c.backend(s), Classes[c.IntN(2)]
		return VoidBackend{Backend: b.ID, Class: class, Previous: c.expect(b.Health[class-1].Index)}
	case 11:
		return c.misc(s)
	case 12:
		return Forget{Keys: []Key{c.key(), c.key()}}
	case 13, 14, 15:
		return Expire{Records: v.Expired(s.Now.Add(time.Duration(c.IntN(60))*time.Second), 1+c.IntN(20))}
	case 16, 17, 18:
		var t Touch
		for a := range v.Affinities() {
			if c.one(8) {
				t.Records = append(t.Records, Touched{Key: a.Key, Index: c.expect(a.Index), Heard: c.one(2), Age: uint32(c.IntN(400))})
			}
		}
		return t
	default:
		return c.learn(v)
	}
}

func (c *chaos) putVIP(s *Spec) Command {
	n := byte(1 + c.IntN(3))
	p := PutVIP{VIP: VIP{Name: fmt.Sprintf("v%d", n), Addr: netip.AddrFrom4([4]byte{192, 0, 2, n}), SSTP: SSTPMode(c.IntN(2))}}
	if v, ok := s.VIPByName(p.VIP.Name); ok {
		if c.one(4) {
			return RemoveVIP{ID: v.ID, Expect: c.expect(v.Version)}
		}
		p.Expect = c.expect(v.Version)
	}
	return p
}

func (c *chaos) putBackend(s *Spec) Command {
	if len(s.VIPs) == 0 {
		return Tick{}
	}
	n := byte(1 + c.IntN(8))
	p := PutBackend{Backend: Backend{
		VIP: s.VIPs[c.IntN(len(s.VIPs))].ID, Name: fmt.Sprintf("s%d", n), Weight: uint16(c.IntN(3) * 50),
		Limit: uint32(c.IntN(3) * 4), Addr: netip.AddrFrom4([4]byte{203, 0, 113, n}),
	}}
	if (n > 6) != c.one(20) {
		p.Backend.Mode = ModeDSR
	}
	if b, ok := s.BackendByName(p.Backend.Name); ok && b.Admin != AdminRemoved {
		p.Backend.VIP, p.Expect = 0, c.expect(b.Version)
	}
	return p
}

func (c *chaos) misc(s *Spec) Command {
	n := byte(c.IntN(4))
	if c.one(2) {
		return c.certificate(s, fmt.Sprintf("c%d", n))
	}
	who := memberOf(NodeID{0xc0 + n, 15: n + 10}, fmt.Sprintf("n%d", n))
	switch c.IntN(7) {
	case 0:
		return AddToken{Hash: [32]byte{n}, Life: time.Hour}
	case 1:
		return AdmitMember{Token: [32]byte{n}, Member: who}
	case 2:
		return RemoveMember{ID: who.ID}
	case 3:
		return PutGateway{Addr: netip.AddrFrom4([4]byte{203, 0, 113, 200 + n})}
	case 4:
		return OwnGateway{ID: GatewayID(c.IntN(4)), Owner: nodeA}
	case 5:
		set := s.Settings
		set.SourceLimit = uint32(c.IntN(2) * 1000)
		set.NodeBudget, set.PrefixBudget = uint32(5+c.IntN(30)), uint32(5+c.IntN(20))
		return SetSettings{Settings: set, Expect: set.Version}
	}
	return PutSecret{Name: SecretGossip, Sealed: []byte{n}, Expect: s.KeyEpoch}
}

// certificate adds, removes or lets somebody use a certificate.
func (c *chaos) certificate(s *Spec, name string) Command {
	place, known := s.CertificateByName(name)
	switch {
	case !known && c.one(3):
		return PutSecret{Name: SecretOfCertificate(name), Sealed: []byte{1}}
	case !known:
		return PutCertificate{Certificate: CertificatePlace{Name: name, SHA256: [32]byte{byte(c.IntN(9))}}}
	case c.one(3):
		return RemoveCertificate{Name: name, Secret: c.one(2), Expect: c.expect(place.Version)}
	case c.one(2) && len(s.VIPs) > 0:
		v := s.VIPs[c.IntN(len(s.VIPs))]
		v.Certificates, v.Transparent = []string{name}, c.one(2)
		return PutVIP{VIP: v, Expect: c.expect(v.Version)}
	}
	b := *c.backend(s)
	b.Certificate, b.SSTPPort = name, uint16(c.IntN(2)*8080)
	return PutBackend{Backend: b, Expect: c.expect(b.Version)}
}

func (c *chaos) learn(v *View) Command {
	var l Learn
	for range 1 + c.IntN(6) {
		one := Learned{
			Key: c.key(), Backend: c.backend(v.Spec()).ID,
			State: Confirmation(1 + c.IntN(3)), Opening: c.one(2),
		}
		if a, ok := v.Affinity(one.Key); ok && !c.one(3) {
			one.Replaces = c.expect(a.Index)
		}
		l.Records = append(l.Records, one)
	}
	return l
}

func newChaos(seed uint64) *chaos {
	return &chaos{Rand: rand.New(rand.NewPCG(seed, 1)), clients: 60}
}

// run drives a machine: entry n of the log is what step makes of the state.
func (c *chaos) run(t *testing.T, r *rig, entries int, after func(before *View, all []Envelope, applied Applied)) {
	r.t = t
	origins := []NodeID{nodeA, nodeB, {0xc0, 15: 10}}
	sequences := map[NodeID]uint64{nodeA: r.sequence}
	for range entries {
		r.after(time.Duration(c.IntN(40)) * time.Second)
		if c.one(200) {
			r.after(time.Hour)
		}
		before := r.m.View()
		var all []Envelope
		for range 1 + c.IntN(c.batch()) {
			o := origins[c.IntN(len(origins))]
			sequences[o]++
			e := Envelope{Origin: o, Boot: 1, Sequence: sequences[o], Command: c.command(before)}
			if c.one(10) && e.Sequence > 3 {
				e.Sequence -= uint64(c.IntN(3)) // delivered twice, or overtaken
			}
			all = append(all, e)
		}
		r.apply(all...)
		if after != nil {
			after(before, all, r.last)
		}
	}
	r.sequence = sequences[nodeA]
}

// batch is how many envelopes an entry has at most.
func (c *chaos) batch() int {
	if c.clients == modelClients {
		return 1
	}
	return 4
}

// TestReplicas: apply = snapshot + restore + apply, and two replicas are equal
// to the byte, in what they answer and say of themselves too.
func TestReplicas(t *testing.T) {
	between := 0
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := newRig(t)
			twin, reborn := NewMachine(), NewMachine()
			if err := twin.Restore(bytes.NewReader(r.snapshot())); err != nil {
				t.Fatal(err)
			}
			c := newChaos(seed)
			n := 0
			c.run(t, r, 600, func(_ *View, all []Envelope, applied Applied) {
				data := EncodeBatch(Batch{Stamp: r.now, Envelopes: all})
				same := func(name string, m *Machine) {
					other, err := m.Apply(r.index, data)
					if err != nil || fmt.Sprint(other.Outcomes) != fmt.Sprint(applied.Outcomes) ||
						fmt.Sprint(other.Delta.Upsert, other.Delta.Delete) != fmt.Sprint(applied.Delta.Upsert, applied.Delta.Delete) ||
						(other.Delta.Spec == nil) != (applied.Delta.Spec == nil) {
						t.Fatalf("entry %d: %s gives %+v, %v; want %+v", r.index, name, other, err, applied)
					}
				}
				same("a twin", twin)
				if n > 0 {
					same("a restored machine", reborn)
				}
				if n++; n%7 == 0 || n == 1 {
					if err := reborn.Restore(bytes.NewReader(r.snapshot())); err != nil {
						t.Fatalf("entry %d: %v", r.index, err)
					}
					between += stillFull(reborn.View().Spec())
					if n%21 == 0 && (twin.View().Hash() != r.m.View().Hash() || reborn.View().Hash() != r.m.View().Hash()) {
						t.Fatalf("entry %d: hashes differ", r.index)
					}
				}
			})
			if got := r.m.View().Len(); got == 0 || len(r.spec().Backends) == 0 {
				t.Errorf("%d records, %d backends: the test is too tame", got, len(r.spec().Backends))
			}
		})
	}
	if between == 0 {
		t.Error("no restored backend was full below its limit: the test is too tame")
	}
}

// consistent checks what must hold in every state.
func consistent(t *testing.T, v *View) {
	t.Helper()
	s := v.Spec()
	entries := map[BackendID][len(Classes)]uint32{}
	for a := range v.Affinities() {
		e := entries[a.Backend]
		e[a.Class-1]++
		entries[a.Backend] = e
		if got, ok := v.Affinity(a.Key); !ok || got != a {
			t.Fatalf("%v is listed but not found", a.Key)
		}
	}
	slots := map[Slot]bool{}
	for i := range s.Backends {
		b := &s.Backends[i]
		if b.Entries != entries[b.ID] {
			t.Fatalf("backend %d counts %v entries, has %v", b.ID, b.Entries, entries[b.ID])
		}
		latch := *b
		if latch.fill(); latch.Filled != b.Filled {
			t.Fatalf("backend %+v is not what its counts say", b)
		}
		delete(entries, b.ID)
		if slots[b.Slot] || b.Slot == 0 {
			t.Fatalf("slot %d is used twice", b.Slot)
		}
		slots[b.Slot] = true
		for _, c := range Classes {
			if b.Mode == ModeDSR && b.Entries[c-1] > 0 && (c == ClassTCP || !s.Stance(b, c).Known()) {
				t.Fatalf("DSR backend %d, %v, has %d records of %v", b.ID, s.Stance(b, c), b.Entries[c-1], c)
			}
			if got := v.marks[i].stances[c-1]; got != s.Stance(b, c) {
				t.Fatalf("backend %d: stance %v, noted %v", b.ID, s.Stance(b, c), got)
			}
		}
	}
	if len(entries) > 0 {
		t.Fatalf("records name backends that are gone: %v", entries)
	}
	if s.Affinities != v.Len() {
		t.Fatalf("%d records, the spec says %d", v.Len(), s.Affinities)
	}
}

// stillFull counts the backends that only the latch keeps full.
func stillFull(s *Spec) (n int) {
	for i := range s.Backends {
		if b := &s.Backends[i]; b.Full() && b.Entries[ClassIKE-1] < b.Limit {
			n++
		}
	}
	return n
}
