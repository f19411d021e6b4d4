package table

import (
	"strings"
	"testing"
)

// Names are metric labels and CLI output: each reason has one of its own, and
// its first word says what becomes of the packet.
func TestReasonNames(t *testing.T) {
	seen := make(map[string]Reason)
	for r := ReasonNone; r < ReasonCount; r++ {
		name := r.String()
		if other, ok := seen[name]; ok || name == "" {
			t.Errorf("reason %d is called %q, as reason %d is", r, name, other)
		}
		seen[name] = r
		if verb, _, _ := strings.Cut(name, "_"); r != ReasonNone && verb != "pass" && verb != "drop" && verb != "forward" && verb != "answer" {
			t.Errorf("reason %q does not begin with what becomes of the packet", name)
		}
	}
	if got := ReasonCount.String(); got != "invalid" {
		t.Errorf("a reason out of range is called %q", got)
	}
}

func TestStances(t *testing.T) {
	for s, want := range map[Stance]struct{ mayTake, known bool }{
		None: {}, Take: {true, true}, Keep: {true, true}, Leave: {false, true}, Void: {},
	} {
		if s.MayTake() != want.mayTake || s.Known() != want.known {
			t.Errorf("stance %d: may take %v, known %v", s, s.MayTake(), s.Known())
		}
	}
}
