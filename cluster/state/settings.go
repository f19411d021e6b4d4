package state

import (
	"fmt"
	"strings"
	"time"
)

// DefaultSettings are those of a new cluster; each value's reason is beside
// its field in Settings or here.
func DefaultSettings() Settings {
	return Settings{
		AffinityTimeout:   40 * time.Minute,
		UnheardTimeout:    12 * time.Hour,
		EarnedSKTimeout:   2 * time.Minute,
		EarnedAuthTimeout: 10 * time.Minute,
		TouchInterval:     5 * time.Minute,
		VoidAfter:         120 * time.Second,
		DownAfter:         3,
		UpAfter:           5,
		ProbeInterval:     time.Second,
		ProbeTimeout:      time.Second,
		UpDwell:           10 * time.Second,
		Demote:            5 * time.Second,
		// A login is confirmed by ESP within seconds, so a node's share of
		// 16384 is some thousand logins a second; a replayed IKE_AUTH fills it
		// once in EarnedSKTimeout and evicts nobody.
		NodeBudget: 16384,
		// Half of a /24: all of an office or of a CGNAT pool may log in at once.
		PrefixBudget: 128,
	}
}

// demoteWithSSTP is T1 where TLS ends on the nodes: demotion moves the clients of
// a node to another, and their connections of SSTP break with that, while IKE
// does not notice. A leader that is missing for a minute is worth that.
const demoteWithSSTP = time.Minute

// DemoteAfter is T1: without a quorum for this long a node demotes. The default
// is longer where TLS of SSTP ends on the nodes.
func (s *Spec) DemoteAfter() time.Duration {
	t1 := s.Settings.Demote
	if t1 != DefaultSettings().Demote {
		return t1
	}
	for i := range s.VIPs {
		if s.VIPs[i].SSTP.Ends() {
			return demoteWithSSTP
		}
	}
	return t1
}

// Lifetime is how long a record of this confirmation lives after its Seen.
func (s *Settings) Lifetime(c Confirmation) time.Duration {
	switch c {
	case EarnedSK:
		return s.EarnedSKTimeout
	case EarnedAuth:
		return s.EarnedAuthTimeout
	case Confirmed:
		return s.AffinityTimeout
	}
	return 0
}

// Validate names every fault at once; nil when there is none.
func (s *Settings) Validate() error {
	var faults []string
	span := func(name string, d, low, high time.Duration) {
		if d < low || d > high {
			faults = append(faults, fmt.Sprintf("%s must be %v to %v, not %v", name, low, high, d))
		}
	}
	number := func(name string, n, low, high uint32) {
		if n < low || n > high {
			faults = append(faults, fmt.Sprintf("%s must be %d to %d, not %d", name, low, high, n))
		}
	}
	span("affinity timeout", s.AffinityTimeout, time.Second, 7*24*time.Hour)
	span("unheard timeout", s.UnheardTimeout, s.AffinityTimeout, 30*24*time.Hour)
	span("earned-sk timeout", s.EarnedSKTimeout, time.Second, time.Hour)
	span("earned-auth timeout", s.EarnedAuthTimeout, s.EarnedSKTimeout, time.Hour)
	span("touch interval", s.TouchInterval, 100*time.Millisecond, s.AffinityTimeout/2)
	span("void-after", s.VoidAfter, time.Second, 24*time.Hour)
	number("down-after", uint32(s.DownAfter), 1, 100)
	number("up-after", uint32(s.UpAfter), 1, 100)
	span("probe interval", s.ProbeInterval, 50*time.Millisecond, time.Minute)
	span("probe timeout", s.ProbeTimeout, 10*time.Millisecond, time.Minute)
	span("up dwell", s.UpDwell, 0, time.Hour)
	span("demote", s.Demote, 100*time.Millisecond, time.Hour)
	number("node budget", s.NodeBudget, 1, MaxAffinity)
	number("prefix budget", s.PrefixBudget, 1, MaxAffinity)
	number("source limit", s.SourceLimit, 0, MaxLimit)
	faults = append(faults, s.prefixFaults()...)
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("settings: %s", strings.Join(faults, "; "))
}

func (s *Settings) prefixFaults() []string {
	var faults []string
	if n := len(s.InsidePrefixes); n > MaxPrefixes {
		faults = append(faults, fmt.Sprintf("inside prefixes are at most %d, not %d", MaxPrefixes, n))
	}
	if n := len(s.ForwardPrefixes); n > MaxPrefixes {
		faults = append(faults, fmt.Sprintf("forward prefixes are at most %d, not %d", MaxPrefixes, n))
	}
	for _, p := range s.InsidePrefixes {
		if !p.IsValid() || p != p.Masked() {
			faults = append(faults, fmt.Sprintf("inside prefix %v has no valid length or host bits", p))
		}
	}
	for _, p := range s.ForwardPrefixes {
		if !p.IsValid() || p != p.Masked() {
			faults = append(faults, fmt.Sprintf("forward prefix %v has no valid length or host bits", p))
		}
	}
	return faults
}
