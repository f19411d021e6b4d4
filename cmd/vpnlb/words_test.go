package main

import (
	"testing"

	"github.com/vpnlb/vpnlb/deploy/lab"
)

func TestWithPort(t *testing.T) {
	for in, want := range map[string]string{
		"198.51.100.1": "198.51.100.1:7950", "198.51.100.1:7951": "198.51.100.1:7951",
		"2001:db8::1": "[2001:db8::1]:7950", "[2001:db8::1]": "[2001:db8::1]:7950", "[2001:db8::1]:7951": "[2001:db8::1]:7951",
		"n1.example": "n1.example", "": "",
	} {
		if got := withPort(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestFollowPeers(t *testing.T) {
	for _, c := range []struct {
		peers       lab.PeerKind
		asked, want bool
	}{{lab.Embedded, false, true}, {lab.Embedded, true, true}, {lab.Real, false, false}, {lab.Real, true, true}} {
		o := lab.Options{Peers: c.peers, Passthrough: true}
		if followPeers(&o, c.asked); o.Passthrough != c.want {
			t.Errorf("%+v: pass-through %v", c, o.Passthrough)
		}
	}
}
