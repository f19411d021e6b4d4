package node

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// oddSettings has no field at its default.
func oddSettings() state.Settings {
	s := state.DefaultSettings()
	s.InsidePrefixes = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	s.ForwardPrefixes = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25")}
	for _, d := range []*time.Duration{
		&s.AffinityTimeout, &s.UnheardTimeout, &s.EarnedSKTimeout, &s.EarnedAuthTimeout, &s.TouchInterval,
		&s.VoidAfter, &s.ProbeInterval, &s.ProbeTimeout, &s.UpDwell, &s.Demote,
	} {
		*d += 1500 * time.Millisecond
	}
	s.DownAfter, s.UpAfter, s.NodeBudget, s.PrefixBudget, s.SourceLimit = 7, 9, 1234, 56, 7800
	return s
}

func TestSettingsRoundTrip(t *testing.T) {
	want := oddSettings()
	got := state.DefaultSettings()
	for key, value := range showSettings(&want) {
		var err error
		if got, err = changeSetting(got, key, value); err != nil {
			t.Errorf("%s does not read what it shows: %v", key, err)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("after the round trip:\n%+v\nwant\n%+v", got, want)
	}
	// No knob is out of reach: each field but the version is some key's.
	if fields := reflect.TypeFor[state.Settings]().NumField() - 1; fields != len(settings()) {
		t.Errorf("%d fields of the settings, %d keys", fields, len(settings()))
	}
	for _, prefixes := range []string{"inside_prefixes", "forward_prefixes"} {
		s, err := changeSetting(want, prefixes, "")
		if err != nil {
			t.Errorf("%s cannot be emptied: %v", prefixes, err)
		}
		if got := showSettings(&s)[prefixes]; got != "" {
			t.Errorf("%s emptied shows %q", prefixes, got)
		}
	}
}

// What the command takes, the log takes: else the sentence comes from deeper
// down and names no key.
func TestSettingsBoundsAreAgreed(t *testing.T) {
	for key, ends := range map[string][2]string{
		"affinity_timeout": {"10m", "11h"}, "unheard_timeout": {"1h", "168h"}, "earned_sk_timeout": {"30s", "10m"},
		"earned_auth_timeout": {"2m", "1h"}, "touch_interval": {"30s", "20m"}, "void_after": {"10s", "24h"},
		"down_after": {"1", "20"}, "up_after": {"1", "50"}, "probe_interval": {"200ms", "1m"}, "probe_timeout": {"100ms", "10s"},
		"up_dwell": {"0s", "10m"}, "t1": {"1s", "10m"}, "node_budget": {"100", "4194304"}, "prefix_budget": {"10", "4194304"}, "source_limit": {"0", "10000000"},
	} {
		for _, v := range ends {
			s, err := changeSetting(state.DefaultSettings(), key, v)
			if err != nil {
				t.Errorf("%s: %v", key, err)
				continue
			}
			if err := s.Validate(); err != nil {
				t.Errorf("%s %s is taken here and refused by the log: %v", key, v, err)
			}
		}
	}
}

func TestSettingsRefuse(t *testing.T) {
	var many string
	for i := range state.MaxPrefixes + 1 {
		many += netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32).String() + ","
	}
	for _, c := range []struct{ key, value, want string }{
		{"affinity_timeout", "1m", `affinity_timeout is a duration between 5m0s and 168h0m0s, such as 40m0s; not "1m"`},
		{"affinity_timeout", "40", "such as 40m0s"},
		{"affinity_timeout", "soon", "not \"soon\""},
		{"down_after", "0", "down_after is a whole number between 1 and 20, not \"0\""},
		{"down_after", "-1", "whole number"},
		{"down_after", "260", "between 1 and 20"}, // would be 4 in its byte
		{"node_budget", "5000000000", "between 100"},
		{"t1", "0s", "between 1s and 10m0s"},
		{"inside_prefixes", "198.51.100.7", `"198.51.100.7" is not a prefix such as 198.51.100.0/24`},
		{"inside_prefixes", "198.51.100.7/24", "write 198.51.100.0/24"},
		{"inside_prefixes", "0.0.0.0/0", "every address"},
		{"forward_prefixes", "192.0.2.0/24,x", `forward_prefixes: "x"`},
		{"forward_prefixes", many, "are more than 256"},
	} {
		before := state.DefaultSettings()
		_, err := changeSetting(before, c.key, c.value)
		switch {
		case err == nil:
			t.Errorf("%s %s was taken", c.key, c.value)
		case !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), c.key):
			t.Errorf("%s %s: %q, want one sentence with %q", c.key, c.value, err, c.want)
		}
		if !reflect.DeepEqual(before, state.DefaultSettings()) {
			t.Errorf("%s %s: a refused value changed the settings", c.key, c.value)
		}
	}
}

// Settings that bound each other are named by their keys, with what to do first.
func TestSettingsRelated(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{"affinity_timeout", "24h", "affinity_timeout is at most unheard_timeout, and they would be 24h0m0s and 12h0m0s: set unheard_timeout first"},
		{"affinity_timeout", "6m", "touch_interval is at most half of affinity_timeout, and they would be 5m0s and 6m0s: set touch_interval first"},
		{"touch_interval", "50m", "set affinity_timeout first"},
		{"earned_sk_timeout", "1h", "earned_sk_timeout is at most earned_auth_timeout, and they would be 1h0m0s and 10m0s: set earned_auth_timeout first"},
		{"earned_auth_timeout", "1m", "set earned_sk_timeout first"},
	} {
		_, err := changeSetting(state.DefaultSettings(), c.key, c.value)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %q", c.key, c.value, err, c.want)
		}
	}
	// Whatever passes here passes the log: no sentence comes from deeper down.
	for _, k := range settings() {
		for _, v := range []string{"5m", "1h", "12h", "168h", "30s", "2m", "50", "1", "1000000"} {
			if s, err := changeSetting(state.DefaultSettings(), k.key, v); err == nil && s.Validate() != nil {
				t.Errorf("%s %s: %v", k.key, v, s.Validate())
			}
		}
	}
	if s, err := changeSetting(state.DefaultSettings(), "T1", "7s"); err != nil || s.Demote != 7*time.Second {
		t.Errorf("T1, as people write it: %v, %v", s.Demote, err)
	}
}

func TestSettingsUnknownKey(t *testing.T) {
	_, err := changeSetting(state.DefaultSettings(), "affinity-timeout", "1h")
	if err == nil {
		t.Fatal("an unknown key was taken")
	}
	for _, k := range settings() {
		if !strings.Contains(err.Error(), k.key) {
			t.Errorf("%q does not name %s", err, k.key)
		}
	}
}

// What is shown for t1 is what is in force: its default is longer where TLS of SSTP
// ends on the nodes.
func TestShownT1(t *testing.T) {
	for _, tt := range []struct {
		r    *rig
		want string
	}{{world(t), "5s"}, {tlsWorld(t), "1m0s"}} {
		spec := tt.r.spec()
		if got := settingsInForce(spec)["t1"]; got != tt.want || got != spec.DemoteAfter().String() {
			t.Errorf("t1 is shown as %s, want %s", got, tt.want)
		}
	}
}
