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
	if b, ok := spec.BackendByID(a.Backend); ok {
		out.Backend = b.Name
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

func queryClient(r *http.Request) (netip.Addr, error) {
	addr, err := netip.ParseAddr(r.URL.Query().Get("client"))
	if err != nil {
		return addr, refuse("client is an IP address such as 198.51.100.7, not %q", r.URL.Query().Get("client"))
	}
	return addr.Unmap(), nil
}

func (m *member) records(client netip.Addr) []admin.Affinity {
	view := m.view()
	out := []admin.Affinity{}
	for _, c := range state.Classes {
		if a, ok := view.Affinity(state.Key{Client: state.ClientOf(client, 64), Class: c}); ok {
			out = append(out, m.affinityAnswer(view.Spec(), m.clusterNow(), a))
		}
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
