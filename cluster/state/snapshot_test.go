package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// settled is a small state with something of everything.
func settled(t testing.TB) *rig {
	r := newRig(t)
	r.join(memberOf(nodeB, "b"))
	r.join(memberOf(nodeC, "c"))
	r.ok(RemoveMember{ID: nodeC})
	ids := r.farm(1, 3)
	r.ok(PutGateway{Addr: memberOf(NodeID{15: 200}, "x").Addrs[0]})
	r.ok(OwnGateway{ID: 1, Owner: nodeB})
	r.ok(AddToken{Hash: [32]byte{8}, Life: time.Hour})
	r.ok(PutCertificate{Certificate: CertificatePlace{Name: "vpn", Path: "/etc/vpn.pem"}})
	six := client6(3, 0)
	six.Class = ClassIKE
	r.after(90 * time.Second).ok(Learn{Records: []Learned{
		{Key: client4(1), Backend: ids[0], State: Confirmed},
		{Key: client4(2), Backend: ids[1], State: EarnedSK},
		{Key: six, Backend: ids[2], State: EarnedAuth},
		{Key: client6(4, 4), Backend: ids[2], State: Confirmed},
		{Key: client4(3), Backend: 99, State: Confirmed},
	}})
	r.apply(Envelope{Origin: nodeB, Boot: 2, Sequence: 7, Command: Learn{Records: []Learned{{Key: client4(4), Backend: ids[0], State: EarnedSK}}}})
	r.refused(RemoveVIP{ID: 1}, Invalid)
	r.ok(RemoveBackend{ID: ids[1]})
	return r
}

func TestSnapshotGolden(t *testing.T) {
	data := settled(t).snapshot()
	golden(t, "snapshot", data)
	m := NewMachine()
	if err := m.Restore(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if m.View().Hash() != settled(t).m.View().Hash() {
		t.Error("the restored state has another hash")
	}
}

func TestRestoreIsTotal(t *testing.T) {
	r := settled(t)
	data := r.snapshot()
	m := NewMachine()
	if err := m.Restore(iotest.OneByteReader(bytes.NewReader(data))); err != nil {
		t.Fatal(err)
	}
	want := m.View().Hash()
	for n := range data {
		if m.Restore(bytes.NewReader(data[:n])) == nil {
			t.Fatalf("the first %d of %d bytes are accepted", n, len(data))
		}
	}
	for n := range data {
		bad := slices.Clone(data)
		bad[n] ^= 0x10
		if m.Restore(bytes.NewReader(bad)) == nil {
			t.Fatalf("a flipped bit in byte %d is accepted", n)
		}
	}
	if m.Restore(bytes.NewReader(append(slices.Clone(data), 0))) == nil {
		t.Error("a byte more is accepted")
	}
	newer := slices.Clone(data)
	newer[7] = Format + 1
	if err := m.Restore(bytes.NewReader(newer)); !errors.Is(err, ErrUnknown) {
		t.Errorf("a newer format: %v", err)
	}
	if err := m.Restore(iotest.ErrReader(errors.New("disk"))); err == nil {
		t.Error("a reader's error is lost")
	}
	if m.View().Hash() != want {
		t.Error("a refused snapshot changed the state")
	}
}

// A View stays as it was taken, whatever is applied later.
func TestViewIsImmutable(t *testing.T) {
	r := settled(t)
	v := r.m.View()
	if r.m.View() != v {
		t.Error("an unchanged state gives another view")
	}
	hash, index := v.Hash(), v.Index()
	a, _ := v.Affinity(client4(1))
	r.ok(Forget{Keys: []Key{client4(1), client4(4)}})
	r.after(time.Minute).ok(Touch{Records: []Touched{{Key: client6(4, 4), Index: a.Index, Heard: true}}})
	for n := range uint32(3000) {
		r.do(Learn{Records: []Learned{{Key: client4(1000 + n), Backend: 1, State: Confirmed}}})
	}
	r.verdict(3, VerdictDown)
	r.ok(RemoveBackend{ID: 1, Purge: true})
	if v.Hash() != hash || v.Index() != index {
		t.Error("a view changed")
	}
	if b, ok := v.Affinity(client4(1)); !ok || a != b {
		t.Errorf("a record of a view changed to %+v", b)
	}
}

func TestWriteFails(t *testing.T) {
	r, w := io.Pipe()
	r.CloseWithError(errors.New("disk full"))
	if _, err := settled(t).m.View().WriteTo(w); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("got %v", err)
	}
}

func FuzzRestore(f *testing.F) {
	f.Add(settled(f).snapshot())
	f.Add(newRig(f).snapshot())
	two := settled(f)
	two.ok(PutBackend{Backend: Backend{VIP: 1, Name: "d", Mode: ModeDSR, Addr: netip.MustParseAddr("203.0.113.77")}})
	f.Add(two.snapshot())
	f.Add(offloading(f).snapshot())
	f.Add((&rig{t: f, m: NewMachine()}).snapshot())
	f.Fuzz(func(t *testing.T, data []byte) {
		// The sum is mended, or nothing behind it would be reached.
		if n := len(data) - 4; n > 0 {
			binary.LittleEndian.PutUint32(data[n:], crc32.Checksum(data[:n], castagnoli))
		}
		m := NewMachine()
		if m.Restore(bytes.NewReader(data)) != nil {
			return
		}
		var again bytes.Buffer
		if _, err := m.View().WriteTo(&again); err != nil || !bytes.Equal(again.Bytes(), data) {
			t.Fatalf("%x is accepted, but writes %x, %v", data, again.Bytes(), err)
		}
		index := m.View().Index()
		if index == 1<<64-1 {
			return
		}
		all := samples()
		b := Batch{Stamp: 1 << 60}
		for i, name := range slices.Sorted(maps.Keys(all)) { // whatever was restored, no command panics
			b.Envelopes = append(b.Envelopes, Envelope{Origin: NodeID{0x77}, Boot: 1 << 60, Sequence: uint64(i + 1), Command: all[name]})
		}
		if _, err := m.Apply(index+1, EncodeBatch(b)); err != nil {
			t.Fatal(err)
		}
	})
}

// Shards of many records each: order, copies and counts.
func TestSnapshotOfManyRecords(t *testing.T) {
	r := filled(t, 100_000)
	data := r.snapshot()
	m := NewMachine()
	if err := m.Restore(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	consistent(t, m.View())
	if m.View().Hash() != r.m.View().Hash() {
		t.Error("the restored state has another hash")
	}
	perRecord := (len(data) - len(newRig(t).snapshot())) / 100_000
	if perRecord > 30 {
		t.Errorf("a record takes %d bytes", perRecord)
	}
	// Two neighbours change places: not canonical, refused though the sum is right.
	const size = 29
	tail := data[len(data)-4-2*size : len(data)-4]
	swapped := append(slices.Clone(tail[size:]), tail[:size]...)
	copy(tail, swapped)
	binary.LittleEndian.PutUint32(data[len(data)-4:], crc32.Checksum(data[:len(data)-4], castagnoli))
	if err := m.Restore(bytes.NewReader(data)); err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("got %v", err)
	}
}

// Readers in other goroutines never see a state between two entries.
func TestViewWhileApplying(t *testing.T) {
	r := settled(t)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			v, count := r.m.View(), 0
			for range v.Affinities() {
				count++
			}
			first, second := v.Hash(), v.Hash()
			if count != v.Len() || count != v.Spec().Affinities || first != second {
				done <- errors.New("a view is torn")
				return
			}
		}
	}()
	for n := range uint32(500) {
		r.ok(Learn{Records: []Learned{{Key: client4(100 + n), Backend: 1, State: Confirmed}}})
		r.ok(Forget{Keys: []Key{client4(n)}})
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
