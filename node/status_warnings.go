package node

import (
	"fmt"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/admin"
)

// What is wrong is said with its name and what it means: status is read at
// night. These functions judge what the other answers hold; they ask nobody.

// partWarnings speaks of members, routers and servers.
func (m *member) partWarnings(st *admin.Status, add func(string, ...any)) {
	memberWarnings(m.memberList(), st.Voters, st.LiveVoters, add)
	neighbourWarnings(st.Neighbours, add)
	serverWarnings(m.spec().VIPs, st.Backends, add)
	m.trafficWarnings(add)
}

// mutePatience is for a member that starts: its calls come before its first word.
const mutePatience = 2 * hintFresh

// identityWarnings speak of this node's own files and of how it is heard.
func (m *member) identityWarnings(add func(string, ...any)) {
	if f := m.secretFault.get(); f != "" {
		add("%s. This node holds no gateway, leads nothing and shows no certificate of the cluster meanwhile", f)
	} else if f := m.gossipSilent(); f != "" {
		add("this node does not gossip, and hints travel by the mTLS port alone: %s", f)
	}
	if f := m.certsFault.get(); f != "" {
		add("the certificates of this node are not healed: %s", f)
	}
	if f := m.followFault.get(); f != "" {
		add("the gossip keys of the cluster are not followed: %s", f)
	}
	if f := m.publishFault.get(); f != "" {
		add("the others are not told how this node is: %s", f)
	}
	if f := m.bootFault.get(); f != "" {
		add("the boot counter is not kept: %s", f)
	}
}

// memberWarnings speaks of members that do not take part.
func memberWarnings(members []admin.Member, voters, live int, add func(string, ...any)) {
	need := voters/2 + 1
	effect := ""
	switch {
	case voters == 0 || live == voters:
	case live < need:
		effect = fmt.Sprintf("; %d of %d voters are live and %d are needed, so nothing is agreed (forwarding goes on)", live, voters, need)
	case live == need:
		effect = fmt.Sprintf("; %d of %d voters are live: one more loss ends agreement (forwarding goes on)", live, voters)
	default:
		effect = fmt.Sprintf("; %d of %d voters are live", live, voters)
	}
	for i := range members {
		m := &members[i]
		said := effect
		if m.Suffrage != "voter" {
			said = ""
		}
		switch {
		case !m.Live:
			add("member %s has not answered for %s%s: look at its service and at the network, or 'vpnlb cluster remove %s' if it is gone for good", m.Name, m.HeardAgo, said, m.Name)
		case m.Stale && m.StatusAgoSeconds > mutePatience.Seconds():
			add("member %s answers calls, but has said nothing of itself for %s: changes no longer wait for its data plane; 'vpnlb status' there says why, or restart its service", m.Name, m.StatusAgo)
		case m.RaftOff:
			add("member %s answers, but its consensus is off%s: 'vpnlb status' there says why; a restart of its service brings it back", m.Name, said)
		}
	}
}

// neighbourWarnings speaks of routers that do not hear this node.
func neighbourWarnings(list []admin.Neighbour, add func(string, ...any)) {
	down := 0
	for i := range list {
		if nb := &list[i]; nb.State != sessionUp {
			down++
			why := ""
			if nb.Error != "" {
				why = ": " + nb.Error
			}
			add("router %s (AS%d): BGP is %s, not established%s%s", nb.Addr, nb.ASN, nb.State, absence(nb), why)
		}
		sessionWarnings(&list[i], add)
	}
	if down > 0 && down == len(list) {
		add("no router is in session: what this node announces reaches nobody, and its clients come by the routers' static routes at best")
	}
}

const sessionUp = "established"

// absence tells for how long a router has been away, and whether it ever came.
func absence(nb *admin.Neighbour) string {
	out := ago(time.Duration(nb.OutSeconds * float64(time.Second)))
	switch {
	case nb.OutSeconds < 10:
		return ""
	case !nb.EverUp:
		return fmt.Sprintf(", and has never been since this node started %s ago (check address, AS, password and the path)", out)
	}
	return fmt.Sprintf(" for %s", out)
}

// sessionWarnings speaks of what a router says that it should not.
func sessionWarnings(nb *admin.Neighbour, add func(string, ...any)) {
	if nb.DroppedUpdates > 0 {
		add("router %s sends us routes (%d messages, all dropped): configure an outbound deny for this node there", nb.Addr, nb.DroppedUpdates)
	}
	if nb.LastRefusal != "" && nb.LastRefusal != nb.Error {
		add("router %s: a message was refused: %s", nb.Addr, nb.LastRefusal)
	}
}

// poolService is what a warning needs of one service of a server.
type poolService struct{ name, health, stance, why, admin, local, detail string }

// serverWarnings speaks of servers that are down, and of VIPs whose new clients
// nobody takes.
func serverWarnings(vips []state.VIP, backends []admin.Backend, add func(string, ...any)) {
	for i := range vips {
		v := &vips[i]
		var ike, tcp []poolService
		for j := range backends {
			b := &backends[j]
			if b.VIP != v.Name {
				continue
			}
			ike = append(ike, poolService{b.Name, b.Health, b.Stance, b.StanceWhy, b.Admin, b.Local, b.Detail})
			if b.TCP != nil {
				tcp = append(tcp, poolService{b.Name, b.TCP.Health, b.TCP.Stance, b.TCP.StanceWhy, b.Admin, b.TCP.Local, b.TCP.Detail})
			}
		}
		if len(ike) == 0 {
			add("VIP %s has no server: its packets are dropped", v.Name)
		}
		poolWarnings(v.Name, "IKE", ike, add)
		poolWarnings(v.Name, "SSTP", tcp, add)
	}
}

func poolWarnings(vip, service string, pool []poolService, add func(string, ...any)) {
	down, takes := 0, 0
	var why []string
	for _, s := range pool {
		if s.stance == state.StanceTake.String() {
			takes++
		}
		why = append(why, s.name+": "+s.why)
		if s.admin != adminWords[state.AdminEnabled] {
			continue
		}
		detail := ""
		if s.detail != "" {
			detail = " (" + s.detail + ")"
		}
		switch verdictDown := verdictWords[state.VerdictDown]; {
		case s.health == verdictDown:
			down++
			add("server %s of VIP %s is down for %s%s", s.name, vip, service, detail)
		case s.health == verdictWords[state.VerdictUp] && s.local == verdictDown:
			add("server %s of VIP %s does not answer this node for %s%s, though the cluster calls it up: look at the network between them", s.name, vip, service, detail)
		}
	}
	switch {
	case len(pool) == 0:
	case takes == 0:
		add("no server of VIP %s takes new clients for %s, so they are dropped (%s)", vip, service, strings.Join(why, "; "))
	case down > 0 && down >= takes && down == countEnabled(pool):
		add("all enabled servers of VIP %s are down for %s: clients are sent to them all the same, for want of others", vip, service)
	}
}

func countEnabled(pool []poolService) (n int) {
	for _, s := range pool {
		if s.admin == adminWords[state.AdminEnabled] {
			n++
		}
	}
	return n
}

// stanceWhy says why a server does not take new clients, or takes them against
// its verdict; "" where there is nothing to say.
func stanceWhy(spec *state.Spec, b *state.Backend, c state.Class) string {
	stance := spec.Stance(b, c)
	h := &b.Health[c-1]
	var why []string
	say := func(is bool, words string) {
		if is {
			why = append(why, words)
		}
	}
	say(b.Admin == state.AdminRemoved && b.Purged, "removed with --purge")
	say(b.Admin == state.AdminRemoved && !b.Purged, "removed")
	say(b.Admin == state.AdminOffline, "offline")
	say(b.Admin == state.AdminDrain, "drain")
	say(h.Voided != 0, "down for void_after")
	say(h.Voided == 0 && h.Verdict == state.VerdictDown, "down")
	say(h.Verdict == state.VerdictUnknown, "not judged yet")
	say(b.Weight == 0, "weight 0")
	say(b.Full() && !(b.Mode == state.ModeDSR && c == state.ClassTCP), fmt.Sprintf("full: limit %d", b.Limit))
	if stance == state.StanceTake && len(why) > 0 {
		return strings.Join(why, ", ") + "; no other takes them"
	}
	return strings.Join(why, ", ")
}
