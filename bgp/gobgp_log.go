package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	bgplog "github.com/osrg/gobgp/v3/pkg/log"

	"github.com/vpnlb/vpnlb/bgp/screen"
)

// ErrLibrary: the BGP library met a state it calls a bug of its own.
var ErrLibrary = errors.New("bgp library gave up")

// logBridge hands the library's log to slog. Its Fatal and Panic never end the
// process: they make Run return.
type logBridge struct {
	log   *slog.Logger
	fatal chan error // capacity 1: the first one wins

	mu      sync.Mutex
	routers map[string]string // the router behind an address of the screen
}

func newLogBridge(log *slog.Logger) *logBridge {
	return &logBridge{log: log, fatal: make(chan error, 1)}
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

// Warn implements the library's logger.
func (b *logBridge) Warn(msg string, f bgplog.Fields) {
	// The library asks to withdraw what it does not hold: with each Set after a
	// stop or a removal. Nothing is wrong then.
	if strings.HasPrefix(msg, "No matching path for withdraw found") {
		b.emit(slog.LevelDebug, msg, f)
		return
	}
	b.emit(slog.LevelWarn, msg, f)
}

func (b *logBridge) Info(msg string, f bgplog.Fields)  { b.emit(slog.LevelDebug, msg, f) }
func (b *logBridge) Debug(msg string, f bgplog.Fields) { b.emit(slog.LevelDebug, msg, f) }

func (b *logBridge) fail(err error) {
	select {
	case b.fatal <- err:
	default: // one is enough to end Run
	}
}

// name makes the log say the router where the library says the screen's address.
func (b *logBridge) name(neighbours []Neighbour, scr *screen.Screen) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.routers = make(map[string]string, len(neighbours))
	for i := range neighbours {
		b.routers[scr.Inner(i).Router.Addr().String()] = neighbours[i].Address.String()
	}
}

func (b *logBridge) router(key any) any {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r, ok := b.routers[fmt.Sprint(key)]; ok {
		return r
	}
	return key
}

func (b *logBridge) emit(l slog.Level, msg string, f bgplog.Fields) {
	if !b.log.Enabled(context.Background(), l) {
		return
	}
	attrs := make([]slog.Attr, 0, len(f)+1)
	attrs = append(attrs, slog.String("event", msg))
	for _, k := range [...]string{"Topic", "Key", "State", "Reason", "Code", "Subcode", "Error", "Err", "Name"} {
		if v, ok := f[k]; ok {
			if k == "Key" {
				v = b.router(v)
			}
			attrs = append(attrs, slog.Any(k, v))
		}
	}
	b.log.LogAttrs(context.Background(), l, "bgp library", attrs...)
}
