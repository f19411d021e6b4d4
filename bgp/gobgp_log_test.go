package bgp

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// What the library calls its own bug ends Run, not the process.
func TestLogBridgeFindsFatalFaults(t *testing.T) {
	tests := []struct {
		name string
		log  func(*logBridge)
		want error
	}{
		{"panic", func(b *logBridge) { b.Panic("code logic bug", nil) }, ErrLibrary},
		{"fatal", func(b *logBridge) { b.Fatal("no", nil); b.Fatal("again", nil) }, ErrLibrary},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			b := newLogBridge(Deps{}.logger())
			tc.log(b)
			select {
			case err := <-b.fatal:
				if tc.want == nil || !errors.Is(err, tc.want) {
					t.Errorf("got %v, want %v", err, tc.want)
				}
			default:
				if tc.want != nil {
					t.Errorf("not seen, want %v", tc.want)
				}
			}
		})
	}
}

// A withdrawal of what the library does not hold is no warning.
func TestNoWarningOfNothingToWithdraw(t *testing.T) {
	var out bytes.Buffer
	b := newLogBridge(slog.New(slog.NewTextHandler(&out, nil)))
	b.Warn("No matching path for withdraw found, may be path was not installed into table", nil)
	if out.Len() > 0 {
		t.Errorf("logged %s", out.String())
	}
	if b.Warn("another", nil); !strings.Contains(out.String(), "level=WARN") {
		t.Errorf("logged %q, want a warning", out.String())
	}
}
