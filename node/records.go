package node

import (
	"net/http"
	"net/netip"
	"strconv"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/admin"
)

var stateWords = map[state.Confirmation]string{
	state.EarnedSK: "unconfirmed", state.EarnedAuth: "authenticated", state.Confirmed: "confirmed",
}

func (m *member) affinityAnswer(spec *state.Spec, now state.Time, a state.Affinity) admin.Affinity {
	out := admin.Affinity{
		Client: a.Client.Addr(), Class: a.Class.String(), State: stateWords[a.State], Index: a.Index,
		Since: ago(now.Sub(a.Since)), Seen: ago(now.Sub(a.Seen)),
	}
	out.Key = out.Client.String()
	if b, ok := spec.BackendByID(a.Backend); ok {
		out.Backend = b.Name
		if v, ok := spec.VIPByID(b.VIP); ok {
			out.VIP = v.Name
			if out.Client.Is6() && v.ClientBits < 128 {
				out.Key = netip.PrefixFrom(out.Client, int(v.ClientBits)).String()
			}
		}
	}
	return out
}

// clusterNow is cluster time as this node can tell: stamps come once a second.
func (m *member) clusterNow() state.Time { return max(m.replica.Now(), m.spec().Now) }

func (m *member) affinityList(r *http.Request) (any, error) {
	limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil || limit < 0 {
		return nil, refuse("limit is a whole number, 0 for all")
	}
	view := m.view()
	spec, now := view.Spec(), m.clusterNow()
	only := state.BackendID(0)
	if name := r.URL.Query().Get("backend"); name != "" {
		b, err := m.backendNamed(name)
		if err != nil {
			return nil, err
		}
		only = b.ID
	}
	out := admin.Affinities{Records: []admin.Affinity{}}
	for a := range view.Affinities() {
		if only != 0 && a.Backend != only {
			continue
		}
		out.Total++
		if limit == 0 || len(out.Records) < limit {
			out.Records = append(out.Records, m.affinityAnswer(spec, now, a))
		}
	}
	return out, nil
}

// parseClient reads a client: its address, or the prefix that a list shows for
// it. The key that a VIP makes of it is taken later.
func parseClient(text string) (netip.Addr, error) {
	if p, err := netip.ParsePrefix(text); err == nil && p.Addr().Is6() && p.Masked() == p {
		return p.Addr(), nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return addr, refuse("a client is an IP address such as 198.51.100.7 or 2001:db8:7::1, not %q", text)
	}
	return addr.Unmap(), nil
}

func queryClient(r *http.Request) (netip.Addr, error) {
	return parseClient(r.URL.Query().Get("client"))
}

// recordsOf finds what is recorded of a client. Each VIP cuts IPv6 addresses at
// a length of its own, so the client is looked up under the key of each; a
// record under a key of the same bytes that another VIP cut is not its own.
func recordsOf(view *state.View, client netip.Addr) []state.Affinity {
	spec := view.Spec()
	var out []state.Affinity
	for i := range spec.VIPs {
		v := &spec.VIPs[i]
		if v.Addr.Is4() != client.Is4() {
			continue
		}
		for _, c := range state.Classes {
			a, ok := view.Affinity(state.Key{Client: state.ClientOf(client, int(v.ClientBits)), Class: c})
			if b, listed := spec.BackendByID(a.Backend); ok && listed && b.VIP == v.ID {
				out = append(out, a)
			}
		}
	}
	return out
}

func (m *member) records(client netip.Addr) []admin.Affinity {
	view := m.view()
	out := []admin.Affinity{}
	for _, a := range recordsOf(view, client) {
		out = append(out, m.affinityAnswer(view.Spec(), m.clusterNow(), a))
	}
	return out
}

func (m *member) affinityGet(r *http.Request) (any, error) {
	client, err := queryClient(r)
	if err != nil {
		return nil, err
	}
	records := m.records(client)
	if len(records) == 0 {
		return nil, missing("client %s has no record; 'vpnlb explain %s' tells where it would go", client, client)
	}
	return records, nil
}
