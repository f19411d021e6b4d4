package state

import (
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

func client6(upper byte, lower byte) Key {
	k := Key{Class: ClassTCP}
	copy(k.Client[:], []byte{0x20, 0x01, 0x0d, 0xb8, 0, upper})
	k.Client[15] = lower
	return k
}

// samples has one command of each kind, and more where a form has variants.
func samples() map[string]Command {
	settings := DefaultSettings()
	settings.InsidePrefixes = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:1::/48")}
	settings.ForwardPrefixes = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/25")}
	limited := settings
	limited.SourceLimit = 5000
	first := memberOf(nodeA, "a")
	first.Addrs = append(first.Addrs, netip.MustParseAddr("2001:db8::1"))
	first.Draining = true
	in := initOf()
	in.Settings = settings
	return map[string]Command{
		"init":                in,
		"put_vip":             PutVIP{VIP: VIP{Name: "vpn", Addr: netip.MustParseAddr("192.0.2.10"), ClientBits: 64, SSTP: SSTPOffload}, Expect: 0},
		"put_vip_change":      PutVIP{VIP: VIP{ID: 3, Name: "vpn6", Addr: netip.MustParseAddr("2001:db8::10"), ClientBits: 56}, Expect: 300},
		"remove_vip":          RemoveVIP{ID: 3, Expect: 300},
		"put_backend":         PutBackend{Backend: Backend{VIP: 3, Name: "ras1", Addr: netip.MustParseAddr("203.0.113.1"), Weight: 100, Limit: 70000}},
		"put_backend_change":  PutBackend{Backend: Backend{ID: 9, Name: "ras1", Weight: 1}, Expect: 128},
		"set_backend_admin":   SetBackendAdmin{ID: 9, Admin: AdminDrain, Expect: 7},
		"remove_backend":      RemoveBackend{ID: 9, Purge: true, Expect: 7},
		"set_health":          SetHealth{Backend: 9, Class: ClassTCP, Verdict: VerdictDown, Previous: 1 << 40},
		"void_backend":        VoidBackend{Backend: 9, Class: ClassIKE, Previous: 1 << 40},
		"put_gateway":         PutGateway{Addr: netip.MustParseAddr("203.0.113.254")},
		"remove_gateway":      RemoveGateway{ID: 2, Expect: 4},
		"own_gateway":         OwnGateway{ID: 2, Owner: nodeB, Previous: 44},
		"set_settings":        SetSettings{Settings: settings, Expect: 5},
		"add_token":           AddToken{Hash: [32]byte{1, 31: 2}, Name: "b", Life: 10 * time.Minute},
		"admit_member":        AdmitMember{Token: [32]byte{1, 31: 2}, Member: memberOf(nodeB, "b")},
		"update_member":       UpdateMember{Member: first},
		"remove_member":       RemoveMember{ID: nodeB},
		"replace_member":      ReplaceMember{Old: nodeB, Member: memberOf(nodeC, "b")},
		"put_secret":          PutSecret{Name: "gossip", Sealed: []byte{1, 2, 3}, Expect: 9},
		"put_certificate":     PutCertificate{Certificate: CertificatePlace{Name: "vpn", SHA256: [32]byte{9}, Path: "/etc/vpnlb/vpn.pem"}, Expect: 1},
		"remove_certificate":  RemoveCertificate{Name: "vpn", Expect: 10},
		"learn":               Learn{Records: []Learned{{Key: client4(1), Backend: 1, State: EarnedSK}, {Key: client4(2), Backend: 300, State: Confirmed, Replaces: 5000, Opening: true}, {Key: client6(1, 0), Backend: 2, State: EarnedAuth, Opening: true}, {Key: client6(2, 7), Backend: 2, State: Confirmed}}},
		"touch":               Touch{Records: []Touched{{Key: client4(1), Index: 77, Heard: true, Age: 12}, {Key: client6(1, 0), Index: 1 << 33}}},
		"expire":              Expire{Records: []Expired{{Key: client4(1), Index: 77, Seen: 2400 * second}, {Key: client6(2, 7), Index: 78, Seen: 2400*second + 1}}},
		"forget":              Forget{Keys: []Key{client4(1), client6(1, 0), client6(2, 7)}},
		"tick":                Tick{},
		"empty_learn":         Learn{},
		"remove_backend_keep": RemoveBackend{ID: 200},
		"put_backend_mode":    PutBackend{Backend: Backend{VIP: 3, Name: "ras2", Addr: netip.MustParseAddr("2001:db8:2::2"), Mode: ModeDSR, Weight: 100}},
		"set_settings_limit":  SetSettings{Settings: limited, Expect: 5},
		"put_vip_sstp":        PutVIP{VIP: VIP{ID: 3, Name: "vpn", Addr: netip.MustParseAddr("192.0.2.10"), ClientBits: 64, SSTP: SSTPReencrypt, Certificates: []string{"ecdsa", "rsa"}, Transparent: true}, Expect: 300},
		"put_backend_sstp":    PutBackend{Backend: Backend{VIP: 3, Name: "ras1", Addr: netip.MustParseAddr("203.0.113.1"), Weight: 100, Limit: 70000, SSTPPort: 8080, Certificate: "rsa"}, Expect: 7},
		"drop_certificate":    RemoveCertificate{Name: "vpn", Secret: true, Expect: 10},
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name+".hex")
	text := hex.Dump(got)
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("the encoded form of %s changed: logs and snapshots in the field would not be read any more\ngot\n%swant\n%s", name, text, want)
	}
}

func TestCommandGolden(t *testing.T) {
	kinds := map[Kind]bool{}
	for name, c := range samples() {
		t.Run(name, func(t *testing.T) {
			kinds[c.kind()] = true
			if err := Check(c); err != nil {
				t.Fatal(err)
			}
			b := Batch{Stamp: 90 * second, Envelopes: []Envelope{{Origin: nodeA, Boot: 3, Sequence: 1000, Command: c}}}
			data := EncodeBatch(b)
			golden(t, "batch_"+name, data)
			back, err := DecodeBatch(data)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(b, back) {
				t.Errorf("got %+v\nwant %+v", back, b)
			}
			for n := range data { // every cut is an error, none a panic
				if _, err := DecodeBatch(data[:n]); err == nil {
					t.Fatalf("the first %d of %d bytes are accepted", n, len(data))
				}
			}
		})
	}
	for k := KindInit; k <= KindDropCertificate; k++ {
		if !kinds[k] {
			t.Errorf("kind %d has no sample", k)
		}
	}
}

func TestEnvelopesGolden(t *testing.T) {
	e := []Envelope{
		{Origin: nodeA, Boot: 1, Sequence: 1, Command: Tick{}},
		{Origin: nodeB, Boot: 900, Sequence: 1 << 40, Command: RemoveMember{ID: nodeC}},
	}
	data := EncodeEnvelopes(e)
	golden(t, "envelopes", data)
	back, err := DecodeEnvelopes(data)
	if err != nil || !reflect.DeepEqual(e, back) {
		t.Errorf("got %+v, %v", back, err)
	}
}

func TestOutcomesGolden(t *testing.T) {
	o := []Outcome{
		{Code: OK, Index: 5, ID: 300},
		{Code: Conflict, Index: 1 << 33, Detail: "VIP vpn exists already"},
		{Code: OK, Index: 6, Learns: []LearnResult{LearnStored, LearnSuperseded, LearnRefused, LearnStored, LearnRefused}},
	}
	data := EncodeOutcomes(o)
	golden(t, "outcomes", data)
	back, err := DecodeOutcomes(data)
	if err != nil || !reflect.DeepEqual(o, back) {
		t.Errorf("got %+v, %v", back, err)
	}
}

func TestDecodeRefusals(t *testing.T) {
	mapped := client4(1).Client
	one := func(c []byte) []byte { // a batch of one envelope with this command
		b := append([]byte{formatBatch, 0, 1}, make([]byte, 16)...)
		return append(append(b, 1, 1), c...)
	}
	tests := []struct {
		name    string
		data    []byte
		text    string
		unknown bool
	}{
		{"empty", nil, "too early", false},
		{"newer format", []byte{formatBatch + 1, 0, 0}, "format 2", true},
		{"no kind", one([]byte{0}), "kind 0", true},
		{"newer kind", one([]byte{byte(KindDropCertificate) + 1, 1, 2, 3}), "kind 31", true},
		{"more follows", append(one([]byte{byte(KindTick)}), 0), "left over", false},
		{"long number", one([]byte{byte(KindRemoveVIP), 0x81, 0x00, 0}), "shortest", false},
		{"number too large", one([]byte{byte(KindRemoveVIP), 0xff, 0xff, 0xff, 0xff, 0x7f, 0}), "larger", false},
		{"more envelopes than bytes", []byte{formatBatch, 0, 0xff, 0xff, 0x7f}, "too early", false},
		{"more records than bytes", one([]byte{byte(KindLearn), 0x80, 0x10}), "too early", false},
		{"too many records", EncodeBatch(Batch{Envelopes: []Envelope{{Command: Learn{Records: make([]Learned, MaxBatch+1)}}}}), "more than 4096", false},
		{"name too long", one(appendCommand(nil, AddToken{Name: strings.Repeat("n", MaxText+1)})), "bytes of name", false},
		{"IPv4 in the form of IPv6", one(append([]byte{byte(KindForget), 1, 1 | formWhole<<2}, mapped[:]...)), "flags", false},
		{"boolean of 2", one([]byte{byte(KindRemoveBackend), 1, 2, 0}), "boolean", false},
		{"mode DNAT in the form of DSR", one(append(appendBackend([]byte{byte(KindPutBackendMode)}, &Backend{}), 0, 0)), "mode DNAT", false},
		{"no certificate in the form with some", one(append(appendVIP([]byte{byte(KindPutVIPSSTP)}, &VIP{}), 0, 0, 0)), "without certificates", false},
		{"no port in the form with one", one(append(appendBackend([]byte{byte(KindPutBackendSSTP)}, &Backend{}), 0, 0, 0, 0)), "without port", false},
		{"no limit in the form with one", one(append(appendSettings([]byte{byte(KindSetSettingsLimit)}, &Settings{}), 0, 0)), "source limit", false},
		{"family 5", one([]byte{byte(KindPutGateway), 5, 1, 2, 3, 4, 0}), "form of an address", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeBatch(tt.data)
			if err == nil || !strings.Contains(err.Error(), tt.text) || errors.Is(err, ErrUnknown) != tt.unknown {
				t.Errorf("got %v, want %q, unknown %v", err, tt.text, tt.unknown)
			}
		})
	}
	if err := Check(Learn{Records: make([]Learned, MaxBatch+1)}); err == nil {
		t.Error("Check accepts a batch that is too long")
	}
	if err := Check(Init{Settings: Settings{SourceLimit: 1}}); err == nil {
		t.Error("Check accepts an init whose source limit would be lost")
	}
	if err := Check(nil); err == nil {
		t.Error("Check accepts no command")
	}
}

// A committed command that breaks a limit gets an answer; it parks nobody.
func TestApplyJudgesLimits(t *testing.T) {
	r := newRig(t)
	r.refused(Learn{Records: make([]Learned, MaxBatch+1)}, Full)
	r.refused(Forget{Keys: make([]Key, MaxBatch+1)}, Full)
	r.refused(PutVIP{VIP: VIP{Name: strings.Repeat("n", 3000), Addr: netip.MustParseAddr("192.0.2.1")}}, Invalid)
	r.refused(PutSecret{Name: "x", Sealed: make([]byte, MaxSealed+1)}, Invalid)
	before := r.snapshot()
	_, err := r.m.Apply(r.index+1, []byte{formatBatch, 0, 1})
	if err == nil {
		t.Fatal("a broken entry is accepted")
	}
	if _, err = r.m.Apply(r.index, EncodeBatch(Batch{})); err == nil {
		t.Fatal("an entry is applied twice")
	}
	if string(before) != string(r.snapshot()) {
		t.Error("a refused entry changed the state")
	}
}

func FuzzDecodeBatch(f *testing.F) {
	for _, c := range samples() {
		f.Add(EncodeBatch(Batch{Stamp: 5, Envelopes: []Envelope{{Origin: nodeA, Boot: 1, Sequence: 1, Command: c}}}))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, strict := range []bool{true, false} {
			b, err := decodeBatch(data, strict)
			if err != nil {
				continue
			}
			if got := EncodeBatch(b); string(got) != string(data) {
				t.Fatalf("%x is accepted, but encodes as %x", data, got)
			}
		}
		m := NewMachine()
		m.Apply(1, EncodeBatch(Batch{Envelopes: []Envelope{{Origin: nodeA, Boot: 1, Sequence: 1, Command: initOf()}}}))
		m.Apply(2, data) // any answer, no panic
	})
}

func FuzzDecodeOutcomes(f *testing.F) {
	f.Add(EncodeOutcomes([]Outcome{{Code: OK, Index: 5, ID: 300, Learns: []LearnResult{1, 2, 3}}, {Code: Invalid, Detail: "x"}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if o, err := DecodeOutcomes(data); err == nil && string(EncodeOutcomes(o)) != string(data) {
			t.Fatalf("%x is accepted, but encodes otherwise", data)
		}
	})
}

func ExampleNodeID() {
	fmt.Println(NodeID{0xa, 15: 1})
	// Output: 0a000000-0000-0000-0000-000000000001
}
