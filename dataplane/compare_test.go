package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

func clearMap[K any, V any](t testing.TB, m *ebpf.Map) {
	var keys []K
	for batch := range mapBatches[K, V](m) {
		if batch.err != nil {
			t.Fatal(batch.err)
		}
		keys = append(keys, batch.keys...)
	}
	for _, k := range keys {
		_ = m.Delete(&k)
	}
}

func (b *bench) setFragments(t testing.TB, notes []model.FragmentNote) {
	clearMap[bpf.PlaneFragmentKey, uint32](t, b.coll.Maps["fragments"])
	clearMap[bpf.PlaneFragment6Key, uint32](t, b.coll.Maps["fragments6"])
	for _, n := range notes {
		m, key := b.fragmentKey(n.Key)
		if err := m.Put(key, uint32(n.Fate)); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *bench) fragmentKey(k model.FragmentKey) (*ebpf.Map, any) {
	if k.Source.Is4() {
		return b.coll.Maps["fragments"], &bpf.PlaneFragmentKey{Source: word(k.Source), Destination: word(k.Destination), Id: swap(uint16(k.ID)), Protocol: k.Protocol}
	}
	var id [4]byte
	binary.BigEndian.PutUint32(id[:], k.ID)
	return b.coll.Maps["fragments6"], &bpf.PlaneFragment6Key{Source: words(k.Source), Destination: words(k.Destination), Id: nativeWord(id[:]), Protocol: k.Protocol}
}

func swap(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// note reads what was remembered of a first fragment.
func (b *bench) note(k model.FragmentKey) model.Fate {
	m, key := b.fragmentKey(k)
	v := uint32(0)
	if m.Lookup(key, &v) != nil {
		return model.FateUnknown
	}
	return model.Fate(v)
}

func spisOf(sa model.SA) bpf.PlaneSpis {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], sa.Initiator)
	binary.BigEndian.PutUint64(b[8:], sa.Responder)
	return bpf.PlaneSpis{Initiator: binary.NativeEndian.Uint64(b[:]), Responder: binary.NativeEndian.Uint64(b[8:])}
}

// setSAs makes the program remember to whom messages of IKE SAs went just now.
func (b *bench) setSAs(t testing.TB, sas []fixture.SA) {
	clearMap[bpf.PlaneSpis, bpf.PlaneSaClient](t, b.coll.Maps["sa_clients"])
	now, err := b.clock.now()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sas {
		key := spisOf(s.SA)
		if err := b.coll.Maps["sa_clients"].Put(&key, &bpf.PlaneSaClient{Client: s.Client, At: now}); err != nil {
			t.Fatal(err)
		}
	}
}

// diffSAs says where the program remembers other SAs than these.
func (b *bench) diffSAs(t testing.TB, want []fixture.SA) string {
	got := map[bpf.PlaneSpis][16]byte{}
	for batch := range mapBatches[bpf.PlaneSpis, bpf.PlaneSaClient](b.coll.Maps["sa_clients"]) {
		if batch.err != nil {
			t.Fatal(batch.err)
		}
		for i, k := range batch.keys {
			got[k] = batch.values[i].Client
		}
	}
	if len(got) != len(want) {
		return fmt.Sprintf("the program remembers %d SAs, want %d", len(got), len(want))
	}
	for _, s := range want {
		if client, found := got[spisOf(s.SA)]; !found || client != s.Client {
			return fmt.Sprintf("SA %x: the program remembers client %x (%t), want %x", s.SA, client, found, s.Client)
		}
	}
	return ""
}

// takeEvidence reads and clears pending.
func (b *bench) takeEvidence(t testing.TB) *table.Evidence {
	if s := b.control.pendingSerial(); s == b.pending {
		return nil
	} else {
		b.pending = s
	}
	var out *table.Evidence
	for batch := range mapBatches[bpf.PlaneClientKey, bpf.PlanePending](b.coll.Maps["pending_proofs"]) {
		if batch.err != nil {
			t.Fatal(batch.err)
		}
		for i, k := range batch.keys {
			e := evidenceOf(k, batch.values[i])
			out = &e
			if err := b.coll.Maps["pending_proofs"].Delete(&k); err != nil {
				t.Fatal(err)
			}
		}
	}
	return out
}

// addressesOf finds the addresses in a frame, tagged or not; invalid: there are none.
func addressesOf(frame []byte) (src, dst netip.Addr) {
	if len(frame) < 14 {
		return
	}
	at := 14
	if kind := binary.BigEndian.Uint16(frame[12:]); kind == 0x8100 || kind == 0x88a8 {
		at = 18
	}
	if len(frame) < at+20 {
		return
	}
	switch binary.BigEndian.Uint16(frame[at-2:]) {
	case 0x0800:
		return netip.AddrFrom4([4]byte(frame[at+12 : at+16])), netip.AddrFrom4([4]byte(frame[at+16 : at+20]))
	case 0x86dd:
		if len(frame) >= at+40 {
			return netip.AddrFrom16([16]byte(frame[at+8 : at+24])), netip.AddrFrom16([16]byte(frame[at+24 : at+40]))
		}
	}
	return
}

// compare runs a frame and says where the program differs from want.
func (b *bench) compare(t testing.TB, frame []byte, ifindex uint32, want model.Decision) string {
	before := b.reasonCount(t, want.Reason)
	diff := b.compareOut(t, frame, ifindex, want)
	if b.reasonCount(t, want.Reason) != before+1 {
		diff += fmt.Sprintf("not counted as %s\n", want.Reason)
	}
	return diff
}

// compareOut is compare without the counter.
func (b *bench) compareOut(t testing.TB, frame []byte, ifindex uint32, want model.Decision) string {
	action, out := run(t, b.coll.Programs["vpnlb"], frame, b.real[ifindex])
	got := want // what the program does not tell is taken as right
	got.Out = append([]byte(nil), out...)
	switch action {
	case 1:
		got.Verdict, got.Out = model.Drop, nil
	case 2:
		got.Verdict = model.Pass
	case 3, 4:
		got.Verdict = model.Forward
	default:
		return fmt.Sprintf("action %d", action)
	}
	got.Evidence = b.takeEvidence(t)
	if want.Sighting != nil && !b.sighted(want.Sighting) {
		got.Sighting = nil
	}
	if want.Note != nil {
		got.Note = &model.FragmentNote{Key: want.Note.Key, Fate: b.note(want.Note.Key)}
	}
	return fixture.Diff(got, want)
}

func (b *bench) reasonCount(t testing.TB, r table.Reason) uint64 {
	var perCPU []bpf.PlaneCount
	if err := b.coll.Maps["counters"].Lookup(uint32(r), &perCPU); err != nil {
		t.Fatal(err)
	}
	var n uint64
	for _, c := range perCPU {
		n += c.Packets
	}
	return n
}

// ticks tells whether any record was used, by its client or by its server, and
// takes the marks back.
func (b *bench) ticks(t testing.TB, entries []table.Entry) (fromClient, fromServer bool) {
	for _, e := range entries {
		r, found, err := b.affinities.lookup(e.Key)
		if err != nil {
			t.Fatal(err)
		}
		if !found || r.Tick == 0 {
			continue
		}
		fromClient, fromServer = fromClient || !r.Heard, fromServer || r.Heard
		if err := b.affinities.remove(e.Key); err != nil {
			t.Fatal(err)
		}
		if err := b.affinities.put(e); err != nil {
			t.Fatal(err)
		}
	}
	return fromClient, fromServer
}

func (b *bench) resync(t testing.TB, set *table.Set, entries []table.Entry) {
	t.Helper()
	if err := b.Resync(set, entrySeq()); err != nil { // without entries: ticks start anew
		t.Fatal(err)
	}
	if err := b.Resync(set, entrySeq(entries...)); err != nil {
		t.Fatal(err)
	}
}
