package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// setting is one key of `vpnlb cluster set`: how it reads and how it shows.
type setting struct {
	key  string
	show func(*state.Settings) string
	read func(*state.Settings, string) error
}

func durationSetting(key string, lo, hi time.Duration, at func(*state.Settings) *time.Duration) setting {
	return setting{key,
		func(s *state.Settings) string { return at(s).String() },
		func(s *state.Settings, v string) error {
			d, err := time.ParseDuration(v)
			if err != nil || d < lo || d > hi {
				return fmt.Errorf("%s is a duration between %s and %s, such as %s; not %q", key, lo, hi, at(s), v)
			}
			*at(s) = d
			return nil
		}}
}

func countSetting[N uint8 | uint32](key string, lo, hi uint64, at func(*state.Settings) *N) setting {
	return setting{key,
		func(s *state.Settings) string { return strconv.FormatUint(uint64(*at(s)), 10) },
		func(s *state.Settings, v string) error {
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil || n < lo || n > hi {
				return fmt.Errorf("%s is a whole number between %d and %d, not %q", key, lo, hi, v)
			}
			*at(s) = N(n)
			return nil
		}}
}

func prefixSetting(key string, at func(*state.Settings) *[]netip.Prefix) setting {
	return setting{key,
		func(s *state.Settings) string {
			out := make([]string, 0, len(*at(s)))
			for _, p := range *at(s) {
				out = append(out, p.String())
			}
			return strings.Join(out, ",")
		},
		func(s *state.Settings, v string) error {
			prefixes, err := parsePrefixes(v)
			if err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			*at(s) = prefixes
			return nil
		}}
}

func parsePrefixes(v string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for word := range strings.SplitSeq(v, ",") {
		word = strings.TrimSpace(word)
		if word == "" {
			continue
		}
		p, err := netip.ParsePrefix(word)
		if err != nil {
			return nil, fmt.Errorf("%q is not a prefix such as 198.51.100.0/24", word)
		}
		if p.Masked() != p {
			return nil, fmt.Errorf("%s has bits set behind its length: write %s", p, p.Masked())
		}
		if p.Bits() == 0 {
			return nil, fmt.Errorf("%s would be every address: name the prefixes that are meant", p)
		}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	if len(out) > state.MaxPrefixes {
		return nil, fmt.Errorf("%d prefixes are more than %d", len(out), state.MaxPrefixes)
	}
	return out, nil
}

// settings lists every key. The bounds keep a slip from breaking the rules
// that other parts rely on: a timeout shorter than RRAS' own network outage
// time would forget living clients.
func settings() []setting {
	type S = state.Settings
	return []setting{
		prefixSetting("inside_prefixes", func(s *S) *[]netip.Prefix { return &s.InsidePrefixes }),
		prefixSetting("forward_prefixes", func(s *S) *[]netip.Prefix { return &s.ForwardPrefixes }),
		durationSetting("affinity_timeout", 5*time.Minute, 7*24*time.Hour, func(s *S) *time.Duration { return &s.AffinityTimeout }),
		durationSetting("unheard_timeout", time.Hour, 7*24*time.Hour, func(s *S) *time.Duration { return &s.UnheardTimeout }),
		durationSetting("earned_sk_timeout", 30*time.Second, time.Hour, func(s *S) *time.Duration { return &s.EarnedSKTimeout }),
		durationSetting("earned_auth_timeout", time.Minute, time.Hour, func(s *S) *time.Duration { return &s.EarnedAuthTimeout }),
		durationSetting("touch_interval", 30*time.Second, time.Hour, func(s *S) *time.Duration { return &s.TouchInterval }),
		durationSetting("void_after", 10*time.Second, 24*time.Hour, func(s *S) *time.Duration { return &s.VoidAfter }),
		countSetting("down_after", 1, 20, func(s *S) *uint8 { return &s.DownAfter }),
		countSetting("up_after", 1, 50, func(s *S) *uint8 { return &s.UpAfter }),
		durationSetting("probe_interval", 200*time.Millisecond, time.Minute, func(s *S) *time.Duration { return &s.ProbeInterval }),
		durationSetting("probe_timeout", 100*time.Millisecond, 10*time.Second, func(s *S) *time.Duration { return &s.ProbeTimeout }),
		durationSetting("up_dwell", 0, 10*time.Minute, func(s *S) *time.Duration { return &s.UpDwell }),
		durationSetting("t1", time.Second, 10*time.Minute, func(s *S) *time.Duration { return &s.Demote }),
		countSetting("node_budget", 100, state.MaxAffinity, func(s *S) *uint32 { return &s.NodeBudget }),
		countSetting("source_limit", 0, state.MaxLimit, func(s *S) *uint32 { return &s.SourceLimit }),
		countSetting("prefix_budget", 10, state.MaxAffinity, func(s *S) *uint32 { return &s.PrefixBudget }),
	}
}

// showSettings gives every setting as text.
func showSettings(s *state.Settings) map[string]string {
	out := make(map[string]string)
	for _, k := range settings() {
		out[k.key] = k.show(s)
	}
	return out
}

// settingsInForce gives every setting as it works: t1 has another default where TLS
// of SSTP ends on the nodes.
func settingsInForce(spec *state.Spec) map[string]string {
	out := showSettings(&spec.Settings)
	out["t1"] = spec.DemoteAfter().String()
	return out
}

// changeSetting returns s with one key changed; its case does not matter.
func changeSetting(s state.Settings, key, value string) (state.Settings, error) {
	var keys []string
	for _, k := range settings() {
		if k.key == strings.ToLower(key) {
			if err := k.read(&s, value); err != nil {
				return s, err
			}
			return s, related(&s, k.key)
		}
		keys = append(keys, k.key)
	}
	return s, fmt.Errorf("no setting is called %q; there are: %s", key, strings.Join(keys, ", "))
}

// related holds what the log would refuse, in the words of the keys: some
// settings bound each other, so the other one has to be set first.
func related(s *state.Settings, key string) error {
	for _, r := range []struct {
		low, high string
		ok        bool
		words     string // what low must be to high
	}{
		{"affinity_timeout", "unheard_timeout", s.AffinityTimeout <= s.UnheardTimeout, "at most"},
		{"earned_sk_timeout", "earned_auth_timeout", s.EarnedSKTimeout <= s.EarnedAuthTimeout, "at most"},
		{"touch_interval", "affinity_timeout", s.TouchInterval <= s.AffinityTimeout/2, "at most half of"},
	} {
		other := r.low
		if key == r.low {
			other = r.high
		}
		if !r.ok && (key == r.low || key == r.high) {
			shown := showSettings(s)
			return fmt.Errorf("%s is %s %s, and they would be %s and %s: set %s first", r.low, r.words, r.high, shown[r.low], shown[r.high], other)
		}
	}
	return nil
}
