package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/gateway"
	"github.com/vpnlb/vpnlb/node/admin"
)

// segment is an inside interface and its segment: what this node puts there, and a
// stranger that may answer.
type segment struct {
	mu       sync.Mutex
	held     []netip.Addr
	full     bool // nothing can be added
	stranger [6]byte
	answers  chan gateway.SegmentAnswer
}

func (s *segment) Ours() (gateways, vips []netip.Addr, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.held), nil, nil
}

func (s *segment) Inside() ([]netip.Prefix, error) {
	return []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, nil
}

func (s *segment) Add(a netip.Addr, _ bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return errors.New("no more addresses")
	}
	s.held = append(s.held, a)
	return nil
}

func (s *segment) Remove(a netip.Addr, _ bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = slices.DeleteFunc(s.held, func(h netip.Addr) bool { return h == a })
	return nil
}

func (s *segment) MAC() [6]byte              { return mac }
func (s *segment) Announce(netip.Addr) error { return nil }
func (s *segment) Ask(a netip.Addr) error {
	if s.stranger != ([6]byte{}) {
		s.answers <- gateway.SegmentAnswer{Addr: a, MAC: s.stranger}
	}
	return nil
}
func (s *segment) Answers() <-chan gateway.SegmentAnswer { return s.answers }
func (s *segment) Check() error                          { return nil }
func (s *segment) Run(ctx context.Context) error         { <-ctx.Done(); return nil }

// What a node says of a gateway is what is on its interface: a plan is nothing
// that a server could send to.
func TestGatewayIsHereWhenTheKernelHasIt(t *testing.T) {
	addr := netip.MustParseAddr("198.51.100.251")
	for name, c := range map[string]struct {
		seg   *segment
		found bool // the address is there from before
		here  bool
		part  string
	}{
		"taken":                       {seg: &segment{}, here: true},
		"cannot be added":             {seg: &segment{full: true}},
		"a stranger has it":           {seg: &segment{stranger: [6]byte{2, 9, 9, 9, 9, 9}}, part: "does not take it"},
		"a stranger has what is held": {seg: &segment{stranger: [6]byte{2, 9, 9, 9, 9, 9}}, found: true, here: true, part: "holds it, too"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seg := c.seg
				seg.answers = make(chan gateway.SegmentAnswer, 100)
				if c.found {
					seg.held = append(seg.held, addr)
				}
				keeper, err := gateway.New(gateway.Config{Self: nodeA, Inside: "vpnlb-none0"}, gateway.Deps{
					Addresses: seg, Segment: seg,
					Agreement: func() gateway.Agreement {
						return gateway.Agreement{CaughtUp: true, LeaderHeard: time.Now(), Gateways: []state.Gateway{{ID: 7, Addr: addr, Owner: nodeA}}}
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- keeper.Run(ctx) }()
				time.Sleep(20 * time.Second)
				st := keeper.Status()
				here, alarm := gatewayHere(&st, 7)
				said := heldGateways(&st)
				if here != c.here || slices.Contains(said, 7) != c.here {
					t.Errorf("here %v, said %v, want %v", here, said, c.here)
				}
				if (alarm == "") != (c.part == "") || c.part != "" && !(strings.Contains(alarm, "02:09:09:09:09:09") && strings.Contains(alarm, c.part) && strings.Contains(alarm, "take the address off")) {
					t.Errorf("alarm %q", alarm)
				}
				reg := prometheus.NewRegistry()
				reg.MustRegister(gatewayCollector{keeper})
				families, err := reg.Gather()
				if err != nil {
					t.Error(err)
				}
				got := map[string]float64{}
				for _, f := range families {
					got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
				}
				if (got["vpnlb_gateway_held"] == 1) != c.here || (got["vpnlb_gateway_foreign"] == 1) != (c.part != "") {
					t.Errorf("metrics %v", got)
				}
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What status warns of comes with its cause and what to do.
func TestRouteAndGatewayWarnings(t *testing.T) {
	m := &member{started: time.Now(), storedAt: time.Now().Add(-9 * 24 * time.Hour)}
	m.fit.unfit.set(unfitError("self-check of the data plane: no"))
	st := admin.Status{
		VIPs: []admin.VIPStatus{
			{Name: "vpn", Announce: "announced", Reason: "ok"},
			{Name: "six", Announce: "unsent", Reason: "no_session"},
			{Name: "old", Announce: "withdrawn", Reason: "state_too_old"},
		},
		Gateways: []admin.Gateway{{Addr: netip.MustParseAddr("198.51.100.251"), Alarm: "a stranger has it"}, {Addr: netip.MustParseAddr("198.51.100.252")}},
	}
	var got []string
	add := func(format string, args ...any) { got = append(got, fmt.Sprintf(format, args...)) }
	m.gatewayWarnings(&st, add)
	m.routeWarnings(&st, add)
	want := []string{"198.51.100.251: a stranger has it", "gateways go to other nodes: self-check", "VIP six is announced to nobody", "--force-cold-start"}
	if len(got) != len(want) {
		t.Fatalf("got %q", got)
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			t.Errorf("%q does not say %q", got[i], want[i])
		}
	}
}
