package node

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/admin"
)

// said collects warnings.
type said []string

func (s *said) add(format string, args ...any) { *s = append(*s, fmt.Sprintf(format, args...)) }

// check compares with the beginnings of what is wanted, in order.
func (s said) check(t *testing.T, what string, want ...string) {
	t.Helper()
	ok := len(s) == len(want)
	for i := range want {
		ok = ok && strings.Contains(s[i], want[i])
	}
	if !ok {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(s, "\n"), strings.Join(want, "\n"))
	}
}

func TestMemberWarnings(t *testing.T) {
	up := func(name string) admin.Member { return admin.Member{Name: name, Suffrage: "voter", Live: true} }
	dead := func(name string) admin.Member {
		return admin.Member{Name: name, Suffrage: "voter", HeardAgo: "22s", Stale: true}
	}
	for what, c := range map[string]struct {
		members      []admin.Member
		voters, live int
		want         []string
	}{
		"all well":    {[]admin.Member{up("n1"), up("n2"), up("n3")}, 3, 3, nil},
		"one of 3":    {[]admin.Member{up("n1"), up("n2"), dead("n3")}, 3, 2, []string{"member n3 has not answered for 22s; 2 of 3 voters are live: one more loss ends agreement"}},
		"two of 3":    {[]admin.Member{up("n1"), dead("n2"), dead("n3")}, 3, 1, []string{"member n2 ", "member n3 has not answered for 22s; 1 of 3 voters are live and 2 are needed, so nothing is agreed"}},
		"one of 5":    {[]admin.Member{up("n1"), up("n2"), dead("n3"), up("n4"), up("n5")}, 5, 4, []string{"4 of 5 voters are live:"}},
		"a non-voter": {[]admin.Member{up("n1"), {Name: "n9", Suffrage: "nonvoter", HeardAgo: "9s"}}, 1, 1, []string{"member n9 has not answered for 9s: look"}},
		"raft off":    {[]admin.Member{up("n1"), {Name: "n2", Suffrage: "voter", Live: true, RaftOff: true}}, 2, 1, []string{"member n2 answers, but its consensus is off; 1 of 2 voters are live and 2 are needed"}},
	} {
		var got said
		memberWarnings(c.members, c.voters, c.live, got.add)
		if what == "one of 5" { // no alarm about the next loss: it is harmless
			got.check(t, what, "4 of 5 voters are live")
			if strings.Contains(got[0], "one more loss") {
				t.Errorf("%s: %s", what, got[0])
			}
			continue
		}
		got.check(t, what, c.want...)
	}
}

func TestNeighbourWarnings(t *testing.T) {
	up, down := admin.Neighbour{Addr: "192.0.2.1", ASN: 64999, State: "established"}, admin.Neighbour{Addr: "192.0.2.2", ASN: 64998, State: "active"}
	for what, c := range map[string]struct {
		list []admin.Neighbour
		want []string
	}{
		"none": {nil, nil},
		"up":   {[]admin.Neighbour{up}, nil},
		"one":  {[]admin.Neighbour{up, down}, []string{"router 192.0.2.2 (AS64998): BGP is active"}},
		"all":  {[]admin.Neighbour{down}, []string{"router 192.0.2.2", "no router is in session"}},
	} {
		var got said
		neighbourWarnings(c.list, got.add)
		got.check(t, what, c.want...)
	}
}

func TestServerWarnings(t *testing.T) {
	r := newRig(t)
	vip := r.vip("vpn", "203.0.113.10")
	warn := func(local map[string]string) said {
		var got said
		var list []admin.Backend
		spec := r.spec()
		for i := range spec.Backends {
			b := &spec.Backends[i]
			list = append(list, admin.Backend{Name: b.Name, VIP: "vpn", Admin: adminWords[b.Admin], Health: verdictWords[b.Health[0].Verdict], Local: local[b.Name],
				Stance: spec.Stance(b, state.ClassIKE).String(), StanceWhy: stanceWhy(spec, b, state.ClassIKE)})
		}
		serverWarnings(spec.VIPs, list, got.add)
		return got
	}
	warn(nil).check(t, "no server", "VIP vpn has no server: its packets are dropped")
	r1, r2 := r.backend("r1", "198.51.100.101", vip), r.backend("r2", "198.51.100.102", vip)
	r.verdict("r1", state.VerdictUp)
	r.verdict("r2", state.VerdictUp)
	warn(nil).check(t, "both up")
	warn(map[string]string{"r2": "down"}).check(t, "one that this node alone does not reach", "server r2 of VIP vpn does not answer this node for IKE, though the cluster calls it up")
	r.verdict("r2", state.VerdictDown)
	warn(nil).check(t, "one down", "server r2 of VIP vpn is down for IKE")
	r.verdict("r1", state.VerdictDown)
	warn(nil).check(t, "both down", "server r1 of VIP vpn is down", "server r2 of VIP vpn is down", "all enabled servers of VIP vpn are down for IKE: clients are sent to them all the same")
	r.do(state.SetBackendAdmin{ID: r1.ID, Admin: state.AdminDrain})
	r.do(state.SetBackendAdmin{ID: r2.ID, Admin: state.AdminOffline})
	r.verdict("r1", state.VerdictUp)
	warn(nil).check(t, "drained", "no server of VIP vpn takes new clients for IKE, so they are dropped (r1: drain; r2: offline, down)")
}

func TestStanceWhy(t *testing.T) {
	r := newRig(t)
	vip := r.vip("vpn", "203.0.113.10")
	b := r.backend("r1", "198.51.100.101", vip)
	r.backend("r2", "198.51.100.102", vip)
	why := func(name string) string {
		b, _ := r.spec().BackendByName(name)
		return stanceWhy(r.spec(), b, state.ClassIKE)
	}
	check := func(want string) {
		t.Helper()
		if got := why("r1"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	check("not judged yet; no other takes them")
	r.verdict("r2", state.VerdictUp)
	check("not judged yet")
	r.verdict("r1", state.VerdictUp)
	check("")
	now, _ := r.spec().BackendByName("r1")
	put := *now
	put.Limit = 2
	r.do(state.PutBackend{Backend: put, Expect: now.Version})
	r.learn("198.18.0.1", b.ID)
	check("")
	r.learn("198.18.0.2", b.ID)
	check("full: limit 2")
	now, _ = r.spec().BackendByName("r1")
	put = *now
	put.Weight = 0
	r.do(state.PutBackend{Backend: put, Expect: now.Version})
	check("weight 0, full: limit 2")
	r.do(state.RemoveBackend{ID: b.ID})
	check("removed, weight 0, full: limit 2")
}

// A member that is silent is named, and what it said last is not told as news.
func TestVirtualSilentMember(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		asked := tw.leader(nodes...)
		gone := others(nodes, asked)[0]
		tw.isolate(gone)
		time.Sleep(22 * time.Second)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, admin.PathStatus, nil)
		if err != nil {
			t.Fatal(err)
		}
		out, err := asked.status(r)
		if err != nil {
			t.Fatal(err)
		}
		want := "member " + gone.cfg.Name + " has not answered for 2"
		if st := out.(admin.Status); !slices.ContainsFunc(st.Warnings, func(w string) bool {
			return strings.HasPrefix(w, want) && strings.Contains(w, "one more loss ends agreement")
		}) {
			t.Errorf("no %q in %q", want, st.Warnings)
		}
		for _, m := range asked.m.memberList() {
			if silent := m.Name == gone.cfg.Name; m.Stale != silent || m.Live == silent || silent && (m.Announced || m.HeardAgoSeconds < 20) {
				t.Errorf("member %+v", m)
			}
		}
		tw.rejoin(gone)
	})
}

// Without a majority a node can still be taken out by force, to begin anew.
func TestVirtualForcedLeaveWithoutMajority(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		alone := nodes[1]
		tw.isolate(alone)
		time.Sleep(5 * time.Second)
		if err := alone.m.leave(admin.LeaveRequest{}, func(string) {}); err == nil {
			t.Error("left without force and without a majority")
		}
		began := time.Now()
		if err := alone.m.leave(admin.LeaveRequest{Force: true}, func(string) {}); err != nil {
			t.Fatal(err)
		}
		<-alone.ended
		if took := time.Since(began); took > time.Minute {
			t.Errorf("took %s", took)
		}
	})
}
