package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	bgplog "github.com/osrg/gobgp/v3/pkg/log"
)

// ErrLibrary: the BGP library met a state it calls a bug of its own.
var ErrLibrary = errors.New("bgp library gave up")

// logBridge hands the library's log to slog and reads from it what the
// library tells nobody else: that a socket option failed, and why a dial
// failed. Its Fatal and Panic never end the process: they make Run return.
type logBridge struct {
	log   *slog.Logger
	fatal chan error // capacity 1: the first one wins

	mu    sync.Mutex
	cause map[netip.Addr]string // by neighbour: the last failure to connect or the last loss
}

func newLogBridge(log *slog.Logger) *logBridge {
	return &logBridge{log: log, fatal: make(chan error, 1), cause: make(map[netip.Addr]string)}
}

// GetLevel is always debug: failed dials are reported at debug level only.
// slog decides what is shown.
func (*logBridge) GetLevel() bgplog.LogLevel { return bgplog.DebugLevel }
func (*logBridge) SetLevel(bgplog.LogLevel)  {}

func (b *logBridge) Panic(msg string, f bgplog.Fields) {
	b.emit(slog.LevelError, msg, f)
	b.fail(fmt.Errorf("%w: %s", ErrLibrary, msg))
}

func (b *logBridge) Fatal(msg string, f bgplog.Fields) {
	b.emit(slog.LevelError, msg, f)
	b.fail(fmt.Errorf("%w: %s", ErrLibrary, msg))
}

func (b *logBridge) Error(msg string, f bgplog.Fields) { b.emit(slog.LevelError, msg, f) }

// Warn carries the failures to set MD5 keys and hop limits on accepted
// connections and listeners. The library goes on without them; we do not.
func (b *logBridge) Warn(msg string, f bgplog.Fields) {
	b.emit(slog.LevelWarn, msg, f)
	switch msg {
	case "failed to set md5", "cannot set TTL for peer", "cannot set TTL (255) for TCPListener":
		b.fail(fmt.Errorf("%w: %s: %v", ErrSocketOption, msg, firstOf(f, "Err", "Error")))
	}
}

func (b *logBridge) Info(msg string, f bgplog.Fields) {
	b.emit(slog.LevelInfo, msg, f)
	switch msg {
	case "Peer Up":
		b.remember(f, "")
	case "Peer Down":
		b.remember(f, fmt.Sprint(f["Reason"]))
	}
}

// Debug carries the failed dials, those because of a socket option too.
func (b *logBridge) Debug(msg string, f bgplog.Fields) {
	b.emit(slog.LevelDebug, msg, f)
	if msg != "failed to connect" {
		return
	}
	err, _ := f["Error"].(error)
	if err == nil {
		return
	}
	b.remember(f, err.Error())
	if call := new(os.SyscallError); errors.As(err, &call) && call.Syscall == "setsockopt" {
		b.fail(fmt.Errorf("%w: %w", ErrSocketOption, err))
	}
}

func (b *logBridge) fail(err error) {
	select {
	case b.fatal <- err:
	default: // one is enough to end Run
	}
}

func (b *logBridge) remember(f bgplog.Fields, cause string) {
	a, err := netip.ParseAddr(fmt.Sprint(f["Key"]))
	if err != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cause[a.Unmap()] = cause
}

func (b *logBridge) lastCause(a netip.Addr) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cause[a]
}

func (b *logBridge) emit(l slog.Level, msg string, f bgplog.Fields) {
	if !b.log.Enabled(context.Background(), l) {
		return
	}
	attrs := make([]slog.Attr, 0, len(f)+1)
	attrs = append(attrs, slog.String("event", msg))
	for _, k := range [...]string{"Topic", "Key", "State", "Reason", "Code", "Subcode", "Error", "Err", "Name"} {
		if v, ok := f[k]; ok {
			attrs = append(attrs, slog.Any(k, v))
		}
	}
	b.log.LogAttrs(context.Background(), l, "bgp library", attrs...)
}

func firstOf(f bgplog.Fields, keys ...string) any {
	for _, k := range keys {
		if v, ok := f[k]; ok {
			return v
		}
	}
	return "unknown cause"
}
