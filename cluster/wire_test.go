package cluster

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

var update = flag.Bool("update", false, "rewrite golden files")

func fullStatus() NodeStatus {
	s := NodeStatus{
		Role: state.RoleWitness, Format: 3, Applied: 100, PlaneApplied: 99, Generation: 88, RaftTerm: 7, RaftLast: 123456,
		Leader: state.NodeID{1, 2, 3}, Quorum: true, CaughtUp: true, Draining: true, Demoted: true, PlaneHealthy: true,
		Plane: PlaneGeneric, Announced: []state.VIPID{1, 2}, Willing: []state.VIPID{2}, Gateways: []state.GatewayID{5},
	}
	s.Activity = []BackendActivity{{Backend: 1, ESP: 10, SK: 2}, {Backend: math.MaxUint32, ESP: math.MaxUint64, SK: math.MaxUint64}}
	s.Alone, s.Unanswered = []state.BackendID{1}, []state.BackendID{math.MaxUint32, 7}
	return s
}

// appendedLists is the size of the two appended lists of fullStatus.
const appendedLists = 2 + 1 + 5 + 1

func TestStatusRoundTrip(t *testing.T) {
	full := fullStatus()
	for _, s := range []NodeStatus{{}, full} {
		got, err := decodeStatus(s.encode(), s.Boot)
		if err != nil || !reflect.DeepEqual(*got, s) {
			t.Errorf("got %+v, %v\nwant %+v", got, err, s)
		}
	}
	if got, err := decodeStatus(append(full.encode(), 1, 2, 3), 0); err != nil || got.Applied != full.Applied {
		t.Errorf("what a newer version appends: %v", err)
	}
	enc := full.encode()
	for i := range enc {
		_, err := decodeStatus(enc[:i], 0)
		if err == nil && (i == len(enc)-appendedLists || i == len(enc)-appendedLists+2) {
			continue // as an older version ends it
		}
		if err == nil {
			t.Errorf("cut to %d of %d bytes it still decodes", i, len(enc))
		}
	}
	var largest NodeStatus
	for range state.MaxVIPs {
		largest.Announced = append(largest.Announced, maxID)
		largest.Willing = append(largest.Willing, maxID)
	}
	for range state.MaxGateways {
		largest.Gateways = append(largest.Gateways, maxID)
	}
	for i := range state.MaxBackends {
		largest.Activity = append(largest.Activity, BackendActivity{state.BackendID(maxID - i), math.MaxUint64, math.MaxUint64})
	}
	for i := range MaxDoubts {
		largest.Alone = append(largest.Alone, state.BackendID(maxID-i))
		largest.Unanswered = append(largest.Unanswered, state.BackendID(maxID-i))
	}
	if err := largest.check(); err != nil || len(largest.encode()) > MaxPayload {
		t.Errorf("the largest status has %d bytes, most are %d; %v", len(largest.encode()), MaxPayload, err)
	}
	largest.Activity = append(largest.Activity, BackendActivity{})
	if largest.check() == nil {
		t.Error("a status beyond its limits passes")
	}
}

// A flag more is neither a new form nor another length: an older version, which
// reads the flags that it knows, gets along with it, and says nothing with it.
func TestStatusOfAnotherVersion(t *testing.T) {
	s := fullStatus()
	old := s.encode()
	s.Unfit = true
	b := s.encode()
	if len(b) != len(old) || b[0] != old[0] || b[3] != old[3]|flagUnfit {
		t.Fatalf("an older version cannot read it: % x, was % x", b[:4], old[:4])
	}
	if got, err := decodeStatus(b, 0); err != nil || !got.Unfit {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := decodeStatus(old, 0); err != nil || got.Unfit {
		t.Errorf("an older version's status reads as unfit: %+v, %v", got, err)
	}
}

// What is on the wire between versions must not change unseen.
func TestGoldenHint(t *testing.T) {
	seed := sha256.Sum256([]byte("golden"))
	key := ed25519.NewKeyFromSeed(seed[:])
	s := fullStatus()
	raw := makeParts(state.ClusterID{0xc1}, state.NodeID{0xa1}, key, kindStatus, order{boot: 3, sequence: 300}, s.encode())
	raw = append(raw, makeParts(state.ClusterID{0xc1}, state.NodeID{0xa1}, key, kindObservations, order{boot: 3, sequence: 301}, bytes.Repeat([]byte{7}, maxPart+1))...)
	var out strings.Builder
	for _, r := range raw {
		out.WriteString(hex.EncodeToString(r) + "\n")
	}
	out.WriteString(hex.EncodeToString(appendBundle([]byte{bundleVersion}, raw[0], 1500*time.Millisecond)) + "\n")
	path := filepath.Join("testdata", t.Name()+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("the wire form has changed: a change needs a new form number")
	}
}

func TestParts(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	cluster, origin := state.NewClusterID(), state.NewNodeID()
	for _, n := range []int{0, 1, maxPart - 1, maxPart, maxPart + 1, MaxPayload} {
		payload := bytes.Repeat([]byte{byte(n)}, n)
		raw := makeParts(cluster, origin, key, kindObservations, order{boot: 1, sequence: math.MaxUint64}, payload)
		var got []byte
		for i, r := range raw {
			p, err := parsePart(r)
			if err != nil || p.part != i || p.parts != len(raw) || p.origin != origin {
				t.Fatalf("payload of %d: part %d: %+v, %v", n, i, p, err)
			}
			if !p.verify(cluster, key.Public().(ed25519.PublicKey)) {
				t.Errorf("payload of %d: part %d does not verify", n, i)
			}
			if p.verify(state.NewClusterID(), key.Public().(ed25519.PublicKey)) {
				t.Error("a hint verifies in another cluster")
			}
			if len(r) > packetSize-150 {
				t.Errorf("part of %d bytes will not fit a packet", len(r))
			}
			got = append(got, p.payload...)
		}
		if !bytes.Equal(got, payload) {
			t.Errorf("payload of %d came back as %d bytes", n, len(got))
		}
	}
}

// FuzzHint: nothing that anybody sends may panic, or be kept without a
// signature.
func FuzzHint(f *testing.F) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	// Nobody knows the private half of this one. (A key of zeros would not do: it
	// is a point of small order, under which a signature of zeros is good.)
	stranger, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	cluster, origin := state.NewClusterID(), state.NewNodeID()
	s := fullStatus()
	raw := makeParts(cluster, origin, key, kindStatus, order{boot: 1, sequence: 1}, s.encode())
	f.Add(raw[0])
	f.Add(appendBundle([]byte{bundleVersion}, raw[0], time.Second))
	f.Add(s.encode())
	for _, r := range makeParts(cluster, origin, key, kindObservations, order{boot: 1, sequence: 2}, make([]byte, MaxPayload)) {
		f.Add(r)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l := newLedger(Config{Cluster: cluster, Node: state.NodeID{1}}, Deps{Member: func(state.NodeID) (ed25519.PublicKey, bool) {
			return stranger, true
		}})
		try := func(raw []byte, age time.Duration) {
			if _, v := l.receive(raw, age, order{}); v == partFresh || v == partUnknown {
				t.Errorf("kept without a good signature: %x", raw)
			}
		}
		try(b, 0)
		readBundle(b, try)
		if st, err := decodeStatus(b, 0); err == nil {
			if err := st.check(); err != nil {
				t.Error(err)
			}
			again, err := decodeStatus(st.encode(), 0)
			if err != nil || !reflect.DeepEqual(st, again) {
				t.Errorf("not stable: %+v, %+v, %v", st, again, err)
			}
		}
		// The assembly, as if the signature were good.
		if p, err := parsePart(b); err == nil {
			l.store(p, time.Now())
			l.bundle(true)
		}
	})
}
