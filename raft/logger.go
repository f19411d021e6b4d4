package raft

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// logger gives hraft's words to slog, one level down: what hraft calls an error
// (a peer that does not answer) is everyday life here. A message that repeats
// is let through once in repeatAfter.
type logger struct {
	slog *slog.Logger
	name string
	args []any
	seen *repeats
}

var _ hclog.Logger = (*logger)(nil)

const (
	repeatAfter = 10 * time.Second
	maxRepeats  = 256 // remembered messages; all forgotten at once beyond
)

type repeats struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func newLogger(l *slog.Logger) *logger {
	return &logger{slog: l, seen: &repeats{last: map[string]time.Time{}}}
}

func (r *repeats) drop(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.last[key]; ok && time.Since(t) < repeatAfter {
		return true
	}
	if len(r.last) >= maxRepeats {
		clear(r.last)
	}
	r.last[key] = time.Now()
	return false
}

// levels of hclog as ours. hraft says "skipping application of old log" at each
// start because logs.GetCommitIndex is 0.
func level(l hclog.Level, msg string) slog.Level {
	switch {
	case l >= hclog.Error:
		return slog.LevelWarn
	case l == hclog.Warn && msg != "skipping application of old log":
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

func (l *logger) Log(hl hclog.Level, msg string, args ...any) {
	lv := level(hl, msg)
	if !l.slog.Enabled(context.Background(), lv) {
		return
	}
	key := msg
	for i := 0; i+1 < len(args); i += 2 {
		if s, ok := args[i].(string); ok && (s == "peer" || s == "target") {
			key += hclogText(args[i+1])
		}
	}
	if lv > slog.LevelDebug && l.seen.drop(key) {
		return
	}
	all := append(append([]any{}, l.args...), args...)
	for i := 1; i < len(all); i += 2 {
		if f, ok := all[i].(hclog.Format); ok {
			all[i] = hclogText(f)
		}
	}
	l.slog.Log(context.Background(), lv, msg, all...)
}

func (l *logger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *logger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *logger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *logger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *logger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *logger) enabled(hl hclog.Level) bool {
	return l.slog.Enabled(context.Background(), level(hl, ""))
}

func (l *logger) IsTrace() bool { return false }
func (l *logger) IsDebug() bool { return l.enabled(hclog.Debug) }
func (l *logger) IsInfo() bool  { return l.enabled(hclog.Info) }
func (l *logger) IsWarn() bool  { return l.enabled(hclog.Warn) }
func (l *logger) IsError() bool { return l.enabled(hclog.Error) }

func (l *logger) ImpliedArgs() []any { return l.args }
func (l *logger) Name() string       { return l.name }

func (l *logger) With(args ...any) hclog.Logger {
	c := *l
	c.args = append(append([]any{}, l.args...), args...)
	return &c
}

func (l *logger) Named(name string) hclog.Logger {
	c := *l
	c.name = name
	return &c
}

func (l *logger) ResetNamed(name string) hclog.Logger { return l.Named(name) }
func (l *logger) SetLevel(hclog.Level)                {}
func (l *logger) GetLevel() hclog.Level               { return hclog.Info }

func (l *logger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.slog.Handler(), slog.LevelDebug)
}

func (l *logger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return io.Discard }

// hclogText formats a value the way hclog would: a Format is a format and its
// arguments.
func hclogText(v any) string {
	if f, ok := v.(hclog.Format); ok && len(f) > 0 {
		if s, ok := f[0].(string); ok {
			return fmt.Sprintf(s, f[1:]...)
		}
	}
	return fmt.Sprint(v)
}
