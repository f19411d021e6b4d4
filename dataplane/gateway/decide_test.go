package gateway

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

var (
	self  = state.NodeID{1}
	other = state.NodeID{2}
	third = state.NodeID{3}
	gw    = netip.MustParseAddr("198.51.100.254")
	gw6   = netip.MustParseAddr("2001:db8:1::fe")
	vip   = netip.MustParseAddr("192.0.2.100")
	vip6  = netip.MustParseAddr("2001:db8:1::100") // in the nodes' subnet
)

// first is an address for which self is first among self, other and third; last
// one for which it is last.
func addrOfRank(t *testing.T, want int) netip.Addr {
	t.Helper()
	f := Facts{Self: self, Live: []state.NodeID{self, other, third}}
	for i := range 250 {
		a := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
		if rank(&f, &GatewayFacts{Addr: a, Owner: other}) == want {
			return a
		}
	}
	t.Fatal("no address of that rank")
	return netip.Addr{}
}

func TestDecideGateway(t *testing.T) {
	const yes, no = true, false
	settled := Facts{Self: self, CaughtUp: true, Confirmed: true, Live: []state.NodeID{self, other, third}}
	alone := settled
	alone.Confirmed, alone.NoLeaderFor = false, time.Minute
	early := settled
	early.CaughtUp = false
	stopped := alone
	stopped.Suspended = true
	unfit := alone
	unfit.Unfit, unfit.Live = true, []state.NodeID{other, third}
	justLost := alone
	justLost.NoLeaderFor = 900 * time.Millisecond
	first, last := addrOfRank(t, 0), addrOfRank(t, 2)
	for _, c := range []struct {
		name  string
		facts Facts
		g     GatewayFacts
		want  Step
	}{
		{"not caught up keeps", early, GatewayFacts{Owner: other, Held: yes}, Step{Hold: yes, Reason: CatchingUp}},
		{"not caught up takes nothing", early, GatewayFacts{Owner: self, Holder: HolderNobody}, Step{Reason: CatchingUp}},
		{"owner takes", settled, GatewayFacts{Owner: self, Holder: HolderNobody}, Step{Hold: yes, Announce: yes, Reason: Owner}},
		{"owner holds", settled, GatewayFacts{Owner: self, Held: yes}, Step{Hold: yes, Announce: yes, Reason: Owner}},
		{"owner takes though a member answers", settled, GatewayFacts{Owner: self, Holder: HolderMember}, Step{Hold: yes, Announce: yes, Reason: Owner}},
		{"owner asks first", settled, GatewayFacts{Owner: self}, Step{Reason: OwnerUnproven}},
		{"owner takes nothing from a stranger", settled, GatewayFacts{Owner: self, Holder: HolderForeign}, Step{Alarm: yes, Reason: ForeignMAC}},
		{"owner defends", settled, GatewayFacts{Owner: self, Held: yes, Holder: HolderForeign}, Step{Hold: yes, Announce: yes, Alarm: yes, Reason: Owner}},
		{"draining owner holds until the log says else", unfitButConfirmed(settled), GatewayFacts{Owner: self, Held: yes}, Step{Hold: yes, Announce: yes, Reason: Owner}},
		{"no longer owner", settled, GatewayFacts{Owner: other, Held: yes}, Step{Reason: OwnerElsewhere}},
		{"claim ends when a leader speaks", settled, GatewayFacts{Owner: other, Held: yes, Claimed: yes}, Step{Reason: OwnerElsewhere}},
		{"not owner", settled, GatewayFacts{Owner: other, Holder: HolderNobody, SilentFor: time.Hour}, Step{Reason: OwnerElsewhere}},
		{"nobody's is kept", settled, GatewayFacts{Held: yes}, Step{Hold: yes, Reason: OwnerNobody}},
		{"nobody's is not taken", settled, GatewayFacts{Holder: HolderNobody}, Step{Reason: OwnerNobody}},
		{"no leader: kept, silent", alone, GatewayFacts{Owner: self, Held: yes}, Step{Hold: yes, Reason: KeptWithoutLeader}},
		{"no leader: other's kept too", alone, GatewayFacts{Owner: other, Held: yes}, Step{Hold: yes, Reason: KeptWithoutLeader}},
		{"no leader: answered", alone, GatewayFacts{Owner: other, Holder: HolderMember}, Step{Reason: AnsweredElsewhere}},
		{"no leader: stranger", alone, GatewayFacts{Owner: other, Holder: HolderForeign}, Step{Alarm: yes, Reason: ForeignMAC}},
		{"no leader: not asked", alone, GatewayFacts{Owner: other}, Step{Reason: OwnerUnproven}},
		{"no leader: first claims", alone, GatewayFacts{Addr: first, Owner: other, Holder: HolderNobody, SilentFor: time.Second},
			Step{Hold: yes, Announce: yes, Claimed: yes, Reason: ClaimedNoLeader}},
		{"no leader: first waits a second", alone, GatewayFacts{Addr: first, Owner: other, Holder: HolderNobody, SilentFor: 999 * time.Millisecond}, Step{Reason: NotFirst}},
		{"leader lost just now", justLost, GatewayFacts{Addr: first, Owner: other, Holder: HolderNobody, SilentFor: time.Hour}, Step{Reason: NotFirst}},
		{"no leader: last waits for the others", alone, GatewayFacts{Addr: last, Owner: other, Holder: HolderNobody, SilentFor: 2 * time.Second}, Step{Reason: NotFirst}},
		{"no leader: last claims in the end", alone, GatewayFacts{Addr: last, Owner: other, Holder: HolderNobody, SilentFor: 3 * time.Second},
			Step{Hold: yes, Announce: yes, Claimed: yes, Reason: ClaimedNoLeader}},
		{"no leader: the last owner waits for nobody", alone, GatewayFacts{Addr: last, Owner: self, Holder: HolderNobody, SilentFor: time.Second},
			Step{Hold: yes, Announce: yes, Claimed: yes, Reason: ClaimedNoLeader}},
		{"no leader: claim holds", alone, GatewayFacts{Addr: last, Owner: other, Held: yes, Claimed: yes, Holder: HolderMember},
			Step{Hold: yes, Announce: yes, Claimed: yes, Reason: ClaimedNoLeader}},
		{"unfit claims nothing", unfit, GatewayFacts{Addr: first, Owner: other, Holder: HolderNobody, SilentFor: time.Hour}, Step{Reason: NotFit}},
		{"stood still: silent", stopped, GatewayFacts{Owner: self, Held: yes}, Step{Hold: yes, Reason: SuspendedGap}},
		{"stood still: claim kept, silent", stopped, GatewayFacts{Owner: other, Held: yes, Claimed: yes}, Step{Hold: yes, Claimed: yes, Reason: SuspendedGap}},
		{"stood still: no claim", stopped, GatewayFacts{Addr: first, Owner: other, Holder: HolderNobody, SilentFor: time.Hour}, Step{Reason: SuspendedGap}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := c.facts
			if !c.g.Addr.IsValid() {
				c.g.Addr = gw
			}
			f.Gateways = []GatewayFacts{c.g}
			c.want.Addr = c.g.Addr
			if got := Decide(f).Gateways; !reflect.DeepEqual(got, []Step{c.want}) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func unfitButConfirmed(f Facts) Facts { f.Unfit = true; return f }

func TestDecideLeftoversAndVIPs(t *testing.T) {
	vip2 := netip.MustParseAddr("192.0.2.101")
	f := Facts{Self: self, VIPs: []VIPFacts{{Addr: vip}, {Addr: vip2, Held: true}},
		FoundGateways: []netip.Addr{gw}, FoundVIPs: []netip.Addr{netip.MustParseAddr("192.0.2.102")}}
	got := Decide(f)
	want := Plan{
		Gateways: []Step{{Addr: gw, Hold: true, Reason: CatchingUp}},
		VIPs: []Step{{Addr: vip, Reason: CatchingUp}, {Addr: vip2, Hold: true, Reason: CatchingUp},
			{Addr: f.FoundVIPs[0], Hold: true, Reason: CatchingUp}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("catching up:\ngot  %+v\nwant %+v", got, want)
	}
	f.CaughtUp = true
	got = Decide(f)
	want = Plan{
		Gateways: []Step{{Addr: gw, Reason: Removed}},
		VIPs:     []Step{{Addr: vip, Hold: true, Reason: Wanted}, {Addr: vip2, Hold: true, Reason: Wanted}, {Addr: f.FoundVIPs[0], Reason: Removed}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("caught up:\ngot  %+v\nwant %+v", got, want)
	}
}

// In every situation without a leader exactly one node claims first.
func TestOneClaimsFirst(t *testing.T) {
	live := []state.NodeID{self, other, third}
	for i := range 100 {
		a := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
		var claims []string
		for _, id := range live {
			f := Facts{Self: id, CaughtUp: true, NoLeaderFor: time.Second, Live: live,
				Gateways: []GatewayFacts{{Addr: a, Owner: state.NodeID{9}, Holder: HolderNobody, SilentFor: time.Second}}}
			if Decide(f).Gateways[0].Claimed {
				claims = append(claims, id.String())
			}
		}
		if len(claims) != 1 {
			t.Errorf("%v is claimed by %v", a, claims)
		}
	}
}

func TestAssign(t *testing.T) {
	gateways := func(owners ...state.NodeID) []state.Gateway {
		var out []state.Gateway
		for i, o := range owners {
			out = append(out, state.Gateway{ID: state.GatewayID(i + 1), Addr: netip.AddrFrom4([4]byte{198, 51, 100, byte(250 + i)}), Owner: o, Index: uint64(10 + i)})
		}
		return out
	}
	nobody := state.NodeID{}
	count := func(gs []state.Gateway, moves []state.OwnGateway) map[state.NodeID]int {
		n := map[state.NodeID]int{}
		for _, g := range gs {
			for _, m := range moves {
				if m.ID == g.ID {
					g.Owner = m.Owner
				}
			}
			n[g.Owner]++
		}
		return n
	}
	if got := Assign(nil, gateways(self), nil); got != nil {
		t.Errorf("without a fit member: %v", got)
	}
	gs := gateways(self, other, third)
	if got := Assign([]state.NodeID{third, other, self}, gs, nil); got != nil {
		t.Errorf("settled gateways move: %v", got)
	}
	gs = gateways(nobody, nobody, nobody, nobody)
	moves := Assign([]state.NodeID{self, other}, gs, nil)
	if n := count(gs, moves); len(moves) != 4 || n[self] != 2 || n[other] != 2 {
		t.Errorf("new gateways are spread %v", n)
	}
	gs = gateways(self, other, third)
	moves = Assign([]state.NodeID{self, other}, gs, nil)
	if len(moves) != 1 || moves[0].ID != 3 || moves[0].Previous != 12 {
		t.Errorf("death of one owner moves %+v", moves)
	}
	gs = gateways(self, self, self, self)
	moves = Assign([]state.NodeID{self, other}, gs, nil)
	if n := count(gs, moves); len(moves) != 2 || n[self] != 2 {
		t.Errorf("a new member gets %d, spread %v", len(moves), n)
	}
	blind := func(n map[state.NodeID]int) Misses {
		return func(id state.NodeID, gw netip.Addr) int { return n[id] }
	}
	all := []state.NodeID{self, other, third}
	for _, c := range []struct {
		name   string
		misses map[state.NodeID]int
		owners []state.NodeID
		want   []state.NodeID
	}{
		{"the owner alone misses a server", map[state.NodeID]int{self: 1}, []state.NodeID{self}, nil},
		{"another misses more", map[state.NodeID]int{self: 1, other: 2}, []state.NodeID{self}, []state.NodeID{third}},
		{"all miss as many", map[state.NodeID]int{self: 1, other: 1, third: 1}, []state.NodeID{self}, []state.NodeID{self}},
		{"one that owns none misses one", map[state.NodeID]int{third: 1}, []state.NodeID{self, other}, []state.NodeID{self, other}},
		{"each owns one", map[state.NodeID]int{self: 1}, []state.NodeID{other, self, third}, nil},
		{"only one is well", map[state.NodeID]int{self: 1, other: 1}, []state.NodeID{self, other, self}, []state.NodeID{third, third, third}},
	} {
		gs := gateways(c.owners...)
		for _, m := range Assign(all, gs, blind(c.misses)) {
			gs[m.ID-1].Owner = m.Owner
		}
		for i, g := range gs {
			if c.want != nil && g.Owner != c.want[i] {
				t.Errorf("%s: gateway %d is with %v, want %v", c.name, g.ID, g.Owner, c.want[i])
			}
			if c.want == nil && c.misses[g.Owner] > 0 {
				t.Errorf("%s: gateway %d is with a member that misses a server", c.name, g.ID)
			}
			if c.want == nil && c.misses[c.owners[i]] == 0 && g.Owner != c.owners[i] {
				t.Errorf("%s: gateway %d moved", c.name, g.ID)
			}
		}
		if again := Assign(all, gs, blind(c.misses)); again != nil {
			t.Errorf("%s: it moves again: %+v", c.name, again)
		}
	}
	a, b := gateways(nobody, nobody, self), []state.NodeID{third, self, other, self}
	want := fmt.Sprint(Assign([]state.NodeID{self, other, third}, a, nil))
	if got := fmt.Sprint(Assign(b, []state.Gateway{a[2], a[0], a[1]}, nil)); got != want {
		t.Errorf("order matters: %v and %v", got, want)
	}
}
