package raft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/raft/memnet"
)

func TestWatchOverflow(t *testing.T) {
	h := newHub(func() {})
	w := h.watch()
	next := func() (uint64, bool) {
		t.Helper()
		d, resync, err := w.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return d.Index, resync
	}
	if _, resync := next(); !resync {
		t.Error("first is no resync")
	}
	for i := range uint64(3) {
		h.publish(state.Delta{Index: i + 1})
	}
	for i := range uint64(3) {
		if got, resync := next(); got != i+1 || resync {
			t.Errorf("delta %d %v", got, resync)
		}
	}
	for i := range uint64(maxDeltas + 1) {
		h.publish(state.Delta{Index: i + 10})
	}
	h.publish(state.Delta{Index: 5000}) // in the View that a resync takes
	if _, resync := next(); !resync {
		t.Error("overflow is no resync")
	}
	h.publish(state.Delta{Index: 5001})
	if got, resync := next(); got != 5001 || resync {
		t.Error("after the resync:", got, resync)
	}
	w.Close()
	if _, _, err := w.Next(context.Background()); !errors.Is(err, ErrNotStarted) {
		t.Error(err)
	}
}

func TestSequencerKeepsTheSpan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSequencer()
		ctx := context.Background()
		oldest, _ := s.acquire(ctx, 1)
		for { // answered at once, but the oldest is not
			f, ok := s.try(1)
			if !ok {
				break
			}
			s.release(f)
		}
		if s.next-oldest > maxOutstanding {
			t.Errorf("span %d", s.next-oldest)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := s.acquire(short, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("acquire: %v", err)
		}
		go func() { time.Sleep(time.Second); s.release(oldest) }()
		if f, err := s.acquire(ctx, MaxCommands); err != nil || f <= oldest {
			t.Errorf("%d, %v", f, err)
		}
	})
}

func TestConfigFaultsTogether(t *testing.T) {
	_, err := New(Config{Heartbeat: time.Millisecond}, Deps{})
	for _, want := range []string{"node ID", "address", "directory", "heartbeat", "stream layer", "forwarder"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	_, err = New(Config{ID: state.NodeID{1}, Addr: "a", Dir: "d"}, Deps{Stream: memnet.New().Layer("a"), Forward: forwarder{}})
	if err != nil {
		t.Error(err)
	}
}

func TestRestoreNeverGoesBack(t *testing.T) {
	shot := func(ticks int) []byte {
		f := newFSM(newHub(func() {}), func(error) {})
		id := state.NodeID{1}
		for i := range ticks + 1 {
			var cmd state.Command = state.Tick{}
			if i == 0 {
				cmd = state.Init{ClusterID: state.ClusterID{1}, TableSize: 251, Settings: state.DefaultSettings(),
					First: state.Member{ID: id, Name: "a", Role: state.RoleNode}}
			}
			f.Apply(&hraft.Log{Index: uint64(i + 1), Type: hraft.LogCommand, Data: state.EncodeBatch(state.Batch{
				Stamp: state.Time(i), Envelopes: []state.Envelope{{Origin: id, Boot: 1, Sequence: uint64(i + 1), Command: cmd}}})})
		}
		var b bytes.Buffer
		if _, err := f.view().WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	f := newFSM(newHub(func() {}), func(err error) { t.Error(err) })
	restore := func(b []byte) error { return f.Restore(io.NopCloser(bytes.NewReader(b))) }
	if err := restore(shot(9)); err != nil || f.view().Index() != 10 {
		t.Fatal(err, f.view().Index())
	}
	if err := restore(shot(4)); err != nil || f.view().Index() != 10 {
		t.Error("went back:", err, f.view().Index())
	}
	if err := restore([]byte("nothing")); err == nil || f.view().Index() != 10 {
		t.Error("restored nonsense", err)
	}
	if got := fmt.Sprint(f.Apply(&hraft.Log{Index: 7, Type: hraft.LogCommand})); got != errReplayed.Error() {
		t.Error("an old entry:", got)
	}
}

func TestLoggerLowersAndDropsRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := newLogger(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelInfo})))
		for range 20 {
			l.Error("failed to heartbeat to", "peer", "192.0.2.1:7950", "error", "timeout")
		}
		l.Error("failed to heartbeat to", "peer", "192.0.2.2:7950", "error", "timeout")
		l.Info("entering follower state")
		l.Warn("updated", "servers", hclog.Fmt("%d of %d", 2, 3))
		time.Sleep(repeatAfter)
		l.Error("failed to heartbeat to", "peer", "192.0.2.1:7950", "error", "timeout")
		got := b.String()
		if n := strings.Count(got, "192.0.2.1"); n != 2 {
			t.Errorf("logged %d times:\n%s", n, got)
		}
		if strings.Contains(got, "level=ERROR") || strings.Contains(got, "follower state") || !strings.Contains(got, `"2 of 3"`) || !strings.Contains(got, "192.0.2.2") {
			t.Error(got)
		}
	})
}

// Commands of many bytes fill an entry as many commands do.
func TestEntriesAreBoundedByBytes(t *testing.T) {
	r := &Replica{queue: make(chan *submission, maxQueue)}
	secret := func(size int) *submission {
		return &submission{ctx: t.Context(), envs: []state.Envelope{{Command: state.PutSecret{Name: "s", Sealed: make([]byte, size)}}}}
	}
	const each = 60 << 10
	for range 20 {
		r.queue <- secret(each)
	}
	first, entries := <-r.queue, 0
	for first != nil {
		entry, left := r.gather(first)
		var envs []state.Envelope
		for _, s := range entry {
			envs = append(envs, s.envs...)
		}
		if n := len(state.EncodeEnvelopes(envs)); n > maxEntryWeight*weightBytes {
			t.Errorf("an entry of %d commands has %d bytes", len(envs), n)
		}
		first, entries = left, entries+1
	}
	if entries < 20*each/(maxEntryWeight*weightBytes) || entries > 10 {
		t.Errorf("20 commands went into %d entries", entries)
	}
	for range 100 {
		r.queue <- secret(10)
	}
	if entry, left := r.gather(<-r.queue); len(entry) != 100 || left != nil {
		t.Errorf("of 100 small commands %d went into one entry", len(entry))
	}
}
