package boltstore

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"
)

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func entries(from, to uint64) (ls []*hraft.Log) {
	for i := from; i <= to; i++ {
		ls = append(ls, &hraft.Log{Index: i, Term: i / 10, Type: hraft.LogCommand, Data: fmt.Appendf(nil, "entry %d", i)})
	}
	return ls
}

func ends(t *testing.T, s *Store, first, last uint64) {
	t.Helper()
	f, _ := s.FirstIndex()
	l, _ := s.LastIndex()
	if f != first || l != last {
		t.Fatalf("log is %d..%d, want %d..%d", f, l, first, last)
	}
}

func TestLogSurvivesReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raft.db")
	s := open(t, path)
	ends(t, s, 0, 0)
	at := time.Unix(1700000000, 42)
	in := []*hraft.Log{
		{Index: 1, Term: 1, Type: hraft.LogConfiguration, Data: []byte("c"), AppendedAt: at},
		{Index: 2, Term: 3, Type: hraft.LogNoop},
		{Index: 3, Term: 3, Type: hraft.LogCommand, Data: bytes.Repeat([]byte("x"), 100_000), Extensions: []byte("ext")},
	}
	if err := s.StoreLogs(in); err != nil {
		t.Fatal(err)
	}
	if err := s.SetUint64([]byte("CurrentTerm"), 7); err != nil {
		t.Fatal(err)
	}
	if err := s.Set([]byte("LastVoteCand"), []byte("192.0.2.1:7950")); err != nil {
		t.Fatal(err)
	}
	size := s.LogBytes()
	s.Close()

	s = open(t, path)
	ends(t, s, 1, 3)
	if s.LogBytes() != size {
		t.Errorf("size %d after reopen, was %d", s.LogBytes(), size)
	}
	for _, want := range in {
		var got hraft.Log
		if err := s.GetLog(want.Index, &got); err != nil {
			t.Fatal(err)
		}
		if got.Term != want.Term || got.Type != want.Type || !bytes.Equal(got.Data, want.Data) ||
			!bytes.Equal(got.Extensions, want.Extensions) || !got.AppendedAt.Equal(want.AppendedAt) {
			t.Errorf("entry %d changed: %+v", want.Index, got)
		}
	}
	if n, err := s.GetUint64([]byte("CurrentTerm")); n != 7 || err != nil {
		t.Errorf("CurrentTerm %d, %v", n, err)
	}
	if v, err := s.Get([]byte("LastVoteCand")); string(v) != "192.0.2.1:7950" || err != nil {
		t.Errorf("LastVoteCand %q, %v", v, err)
	}
	if v, err := s.Get([]byte("never")); v != nil || err != nil {
		t.Errorf("absent key: %q, %v", v, err)
	}
	if err := s.GetLog(4, new(hraft.Log)); !errors.Is(err, hraft.ErrLogNotFound) {
		t.Errorf("absent entry: %v", err)
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
}

func TestCommitIndexGoesWithEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raft.db")
	s := open(t, path)
	commit := func(want uint64) {
		t.Helper()
		if got, err := s.GetCommitIndex(); got != want || err != nil {
			t.Fatalf("commit index %d, %v, want %d", got, err, want)
		}
	}
	reopen := func() { s.Close(); s = open(t, path) }

	s.StageCommitIndex(5)
	commit(0) // staged only
	s.StoreLogs(entries(1, 3))
	commit(3) // never beyond the log
	reopen()
	commit(3)
	s.StoreLogs(entries(4, 9))
	s.StageCommitIndex(8)
	reopen()
	commit(3) // what was staged is lost with the process
	if err := s.RecordCommitted(8); err != nil {
		t.Fatal(err)
	}
	reopen()
	commit(8)
	if err := s.RecordCommitted(6); err != nil { // never back
		t.Fatal(err)
	}
	reopen()
	commit(8)
}

func TestDeleteRange(t *testing.T) {
	for _, c := range []struct{ lo, hi, first, last uint64 }{
		{1, 20_000, 20_001, 30_000},
		{20_000, 30_000, 1, 19_999},
		{1, 30_000, 0, 0},
		{0, 40_000, 0, 0},
		{30_001, 40_000, 1, 30_000},
	} {
		path := filepath.Join(t.TempDir(), "raft.db")
		s := open(t, path)
		if err := s.StoreLogs(entries(1, 30_000)); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteRange(c.lo, c.hi); err != nil {
			t.Fatal(err)
		}
		ends(t, s, c.first, c.last)
		if c.first == 0 && s.LogBytes() != 0 {
			t.Errorf("%d bytes in an empty log", s.LogBytes())
		}
		was := s.LogBytes()
		s.Close()
		s = open(t, path)
		ends(t, s, c.first, c.last)
		if s.LogBytes() != was {
			t.Errorf("counted %d bytes, found %d", was, s.LogBytes())
		}
	}
}

func TestOverwriteCountsBytesOnce(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "raft.db"))
	s.StoreLogs(entries(1, 10))
	was := s.LogBytes()
	s.StoreLogs(entries(5, 10))
	if s.LogBytes() != was {
		t.Errorf("%d bytes, want %d", s.LogBytes(), was)
	}
}

// filled gives the bytes of a store with some history, and its end.
func filled(t *testing.T) []byte {
	path := filepath.Join(t.TempDir(), "raft.db")
	s := open(t, path)
	for i := uint64(0); i < 30; i++ {
		if err := s.StoreLogs(entries(i*20+1, i*20+20)); err != nil {
			t.Fatal(err)
		}
		s.StageCommitIndex(i * 20)
	}
	s.DeleteRange(1, 100)
	s.SetUint64([]byte("CurrentTerm"), 59)
	s.Set([]byte("LastVoteCand"), []byte("192.0.2.1:7950"))
	s.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readable opens the damaged bytes. Either Open says that they are corrupt, or
// all that can be read is what was written: never a panic, never other data.
func readable(t *testing.T, b []byte, what string) (ok bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "raft.db")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		var c *CorruptError
		if !errors.As(err, &c) {
			t.Errorf("%s: %v is no CorruptError", what, err)
		}
		return false
	}
	defer s.Close()
	first, _ := s.FirstIndex()
	last, _ := s.LastIndex()
	if first != 101 || last != 600 {
		t.Errorf("%s: taken for whole with entries %d..%d", what, first, last)
	}
	for i := first; i <= last && i > 0; i++ {
		var l hraft.Log
		if err := s.GetLog(i, &l); err != nil || string(l.Data) != fmt.Sprintf("entry %d", i) {
			t.Errorf("%s: entry %d: %v %q", what, i, err, l.Data)
		}
	}
	if err := s.StoreLogs(entries(last+1, last+200)); err != nil { // writes into freed pages
		t.Errorf("%s: store after open: %v", what, err)
	}
	return true
}

func TestFlippedBits(t *testing.T) {
	whole := filled(t)
	rng := rand.New(rand.NewPCG(1, 2))
	found := 0
	const n = 400
	for range n {
		b := bytes.Clone(whole)
		at, bit := rng.IntN(len(b)), byte(1)<<rng.IntN(8)
		b[at] ^= bit
		if !readable(t, b, fmt.Sprintf("byte %d bit %#x", at, bit)) {
			found++
		}
	}
	if found == 0 {
		t.Error("not one flipped bit was found")
	}
	t.Logf("%d of %d flipped bits lay in live data and were found", found, n)
}

func TestOverwrittenPages(t *testing.T) {
	whole := filled(t)
	page := os.Getpagesize()
	rng := rand.New(rand.NewPCG(3, 4))
	for at := 0; at+page <= len(whole); at += page {
		for _, fill := range []string{"zero", "random", "other", "header"} {
			b := bytes.Clone(whole)
			p := b[at : at+page]
			switch fill {
			case "zero":
				clear(p)
			case "random":
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
			case "other":
				o := rng.IntN(len(whole)/page) * page
				copy(p, whole[o:o+page])
			case "header": // counts and overflow, where bbolt trusts most
				for i := 8; i < 16; i++ {
					p[i] = 0xff
				}
			}
			readable(t, b, fmt.Sprintf("page %d %s", at/page, fill))
		}
	}
}

func TestTruncated(t *testing.T) {
	whole := filled(t)
	found := 0
	for cut := 1; cut < len(whole); cut += len(whole)/97 + 1 {
		if !readable(t, whole[:cut], fmt.Sprintf("%d of %d bytes", cut, len(whole))) {
			found++
		}
	}
	if found < 40 { // bbolt grows the file ahead: a tail was never used
		t.Errorf("%d cuts found", found)
	}
	if readable(t, []byte(strings.Repeat("not a store ", 2000)), "text") {
		t.Error("a text was taken for a store")
	}
}

func TestTruncatedWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raft.db")
	s := open(t, path)
	for i := uint64(0); i < 50; i++ {
		s.StoreLogs(entries(i*200+1, i*200+200))
	}
	if err := os.Truncate(path, int64(os.Getpagesize())*2); err != nil {
		t.Fatal(err)
	}
	var c *CorruptError
	if err := s.GetLog(5000, new(hraft.Log)); !errors.As(err, &c) {
		t.Errorf("reading what is gone: %v", err)
	}
}

func TestQuarantine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raft.db")
	os.WriteFile(path, []byte("spoiled"), 0o600)
	to, err := Quarantine(path, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	if err != nil || !strings.HasSuffix(to, "raft.db.corrupt-20260102T030405.000Z") {
		t.Fatal(to, err)
	}
	if b, _ := os.ReadFile(to); string(b) != "spoiled" {
		t.Error("content lost")
	}
	if to, err := Quarantine(path, time.Now()); to != "" || err != nil {
		t.Error("absent file:", to, err)
	}
}

func TestLockedByAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raft.db")
	open(t, path)
	_, err := Open(path)
	var c *CorruptError
	if err == nil || errors.As(err, &c) {
		t.Errorf("second open: %v", err)
	}
}

func FuzzDecodeLog(f *testing.F) {
	f.Add(encodeLog(entries(5, 5)[0]))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var l hraft.Log
		if decodeLog(5, b, &l) == nil && !bytes.Equal(encodeLog(&l), b) && l.AppendedAt.IsZero() {
			t.Errorf("%x decodes but encodes differently", b)
		}
	})
}
