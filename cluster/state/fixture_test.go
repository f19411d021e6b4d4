package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// rig is a Machine with a log: what a test drives.
type rig struct {
	t        testing.TB
	m        *Machine
	index    uint64
	now      Time
	sequence uint64
	last     Applied
}

var (
	nodeA = NodeID{0xa, 15: 1}
	nodeB = NodeID{0xb, 15: 2}
	nodeC = NodeID{0xc, 15: 3}
)

func memberOf(id NodeID, name string) Member {
	key := bytes.Repeat([]byte{id[0]}, keySize)
	return Member{
		ID: id, Name: name, Role: RoleNode, Cluster: name + ".example:7950", Gossip: name + ".example:7946",
		Addrs: []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, id[15]})}, PublicKey: key, Format: 1,
	}
}

func initOf() Init {
	return Init{
		ClusterID: ClusterID{1, 2, 3}, HashKey: [16]byte{7, 9}, TableSize: 251,
		Settings: DefaultSettings(), First: memberOf(nodeA, "a"),
		Secrets: []Secret{{Name: SecretCA, Sealed: []byte("ca")}, {Name: SecretGossip, Sealed: []byte("keys")}},
	}
}

// newRig gives a cluster of one node.
func newRig(t testing.TB) *rig {
	r := &rig{t: t, m: NewMachine()}
	r.ok(initOf())
	return r
}

// batch applies envelopes of node A in one entry.
func (r *rig) batch(commands ...Command) []Outcome {
	r.t.Helper()
	var b Batch
	for _, c := range commands {
		r.sequence++
		b.Envelopes = append(b.Envelopes, Envelope{Origin: nodeA, Boot: 1, Sequence: r.sequence, Command: c})
	}
	return r.apply(b.Envelopes...)
}

func (r *rig) apply(all ...Envelope) []Outcome {
	r.t.Helper()
	r.index++
	applied, err := r.m.Apply(r.index, EncodeBatch(Batch{Stamp: r.now, Envelopes: all}))
	if err != nil {
		r.t.Fatalf("apply entry %d: %v", r.index, err)
	}
	r.last = applied
	return applied.Outcomes
}

func (r *rig) do(c Command) Outcome {
	r.t.Helper()
	if admit, ok := c.(AdmitMember); ok { // who asks before must hear what Apply says
		asked := r.spec().MayAdmit(admit, max(r.spec().Now, r.now), NodeID{})
		defer func() {
			r.t.Helper()
			if o := r.last.Outcomes[0]; o.Code != asked.Code || o.Detail != asked.Detail {
				r.t.Errorf("%T: Apply says %+v, MayAdmit said %+v", c, o, asked)
			}
		}()
	}
	return r.batch(c)[0]
}

func (r *rig) ok(c Command) uint64 {
	r.t.Helper()
	o := r.do(c)
	if o.Code != OK {
		r.t.Fatalf("%T: %+v", c, o)
	}
	return o.ID
}

func (r *rig) refused(c Command, code Code) {
	r.t.Helper()
	o := r.do(c)
	if o.Code != code || o.Detail == "" {
		r.t.Fatalf("%T: %+v, want code %d and a sentence", c, o, code)
	}
}

func (r *rig) after(d time.Duration) *rig {
	r.now = r.now.Add(d)
	return r
}

func (r *rig) spec() *Spec { return r.m.View().Spec() }

func (r *rig) backend(id BackendID) *Backend {
	r.t.Helper()
	b, ok := r.spec().BackendByID(id)
	if !ok {
		r.t.Fatalf("there is no backend %d", id)
	}
	return b
}

// farm adds a VIP and backends that are up.
func (r *rig) farm(vip byte, count int) (ids []BackendID) {
	r.t.Helper()
	v := VIPID(r.ok(PutVIP{VIP: VIP{Name: fmt.Sprintf("v%d", vip), Addr: netip.AddrFrom4([4]byte{192, 0, 2, vip}), SSTP: SSTPPassthrough}}))
	for i := range count {
		id := BackendID(r.ok(PutBackend{Backend: Backend{
			VIP: v, Name: fmt.Sprintf("s%d-%d", vip, i+1), Weight: 100,
			Addr: netip.AddrFrom4([4]byte{203, 0, vip, byte(i + 1)}),
		}}))
		r.verdict(id, VerdictUp)
		ids = append(ids, id)
	}
	return ids
}

func (r *rig) verdict(id BackendID, v Verdict) {
	r.t.Helper()
	for _, c := range Classes {
		r.ok(SetHealth{Backend: id, Class: c, Verdict: v, Previous: r.backend(id).Health[c-1].Index})
	}
}

func (r *rig) admin(id BackendID, a AdminState) {
	r.t.Helper()
	r.ok(SetBackendAdmin{ID: id, Admin: a})
}

func client4(n uint32) Key {
	k := Key{Class: ClassIKE}
	k.Client[10], k.Client[11] = 0xff, 0xff
	binary.BigEndian.PutUint32(k.Client[12:], 198<<24|18<<16+n)
	return k
}

func (r *rig) learn(l Learned) LearnResult {
	r.t.Helper()
	return r.do(Learn{Records: []Learned{l}}).Learns[0]
}

// known stores a confirmed record and returns its index.
func (r *rig) known(k Key, id BackendID) uint64 {
	r.t.Helper()
	if got := r.learn(Learned{Key: k, Backend: id, State: Confirmed}); got != LearnStored {
		r.t.Fatalf("learn %v at backend %d: %d", k, id, got)
	}
	a, _ := r.m.View().Affinity(k)
	return a.Index
}

func (r *rig) snapshot() []byte {
	r.t.Helper()
	var b bytes.Buffer
	if _, err := r.m.View().WriteTo(&b); err != nil {
		r.t.Fatal(err)
	}
	return b.Bytes()
}
