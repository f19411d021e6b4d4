package node

import (
	"cmp"
	"iter"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/admin"
)

var stateWords = map[state.Confirmation]string{
	state.EarnedSK: "unconfirmed", state.EarnedAuth: "authenticated", state.Confirmed: "confirmed",
}

// teller turns records into answers, as of one moment.
type teller struct {
	spec *state.Spec
	now  state.Time                            // cluster time
	here func(table.Key) (time.Duration, bool) // last packet that crossed this node; nil: not known
}

func (m *member) teller(spec *state.Spec) teller {
	return teller{spec: spec, now: m.clusterNow(), here: m.plane.LastPackets()}
}

// seen is the last activity: the agreed one, which is told every touch_interval,
// or a packet that crossed this node since.
func (t *teller) seen(a *state.Affinity) time.Duration {
	agreed := t.now.Sub(a.Seen)
	if t.here == nil {
		return agreed
	}
	if here, ok := t.here(tableKey(a.Key)); ok && here < agreed {
		return here
	}
	return agreed
}

func (t *teller) answer(a state.Affinity) admin.Affinity {
	since, seen := t.now.Sub(a.Since), t.seen(&a)
	out := admin.Affinity{
		Client: a.Client.Addr(), Class: a.Class.String(), State: stateWords[a.State], Index: a.Index,
		Since: ago(since), Seen: ago(seen), SinceSeconds: seconds(since), SeenSeconds: seconds(seen),
	}
	out.Key = out.Client.String()
	if b, ok := t.spec.BackendByID(a.Backend); ok {
		out.Backend = b.Name
		if v, ok := t.spec.VIPByID(b.VIP); ok {
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

// maxPage bounds an answer of records: a list of all has many pages, and the
// daemon never holds more than one of them.
const maxPage = 10000

// page is which records are asked for.
type page struct {
	after place // the last of the page before
	limit int
	only  state.BackendID // 0: of any server
}

// place orders records for lists: by address, IPv4 first, then by class.
type place struct {
	client netip.Addr // zero: before all
	class  state.Class
}

func placeOf(a *state.Affinity) place { return place{a.Client.Addr(), a.Class} }

func (p place) compare(q place) int {
	return cmp.Or(p.client.Compare(q.client), cmp.Compare(p.class, q.class))
}

func (p place) String() string { return p.client.String() + "," + p.class.String() }

func parsePlace(text string) (place, error) {
	addr, class, _ := strings.Cut(text, ",")
	at, err := netip.ParseAddr(addr)
	for _, c := range state.Classes {
		if err == nil && c.String() == class {
			return place{at, c}, nil
		}
	}
	return place{}, refuse("after is what an answer's next said, not %q", text)
}

// take gives a page of records in order, how many match in all, and whether
// more follow. It walks all once, and holds two pages at most.
func (p page) take(records iter.Seq[state.Affinity]) (out []state.Affinity, total int, more bool) {
	order := func(a, b state.Affinity) int { return placeOf(&a).compare(placeOf(&b)) }
	var last place // where no place is left on the page behind it
	full := false
	cut := func() {
		slices.SortFunc(out, order)
		if len(out) > p.limit {
			out, more = out[:p.limit], true
		}
		if full = len(out) == p.limit; full {
			last = placeOf(&out[len(out)-1])
		}
	}
	for a := range records {
		if p.only != 0 && a.Backend != p.only {
			continue
		}
		total++
		at := placeOf(&a)
		switch {
		case p.after.client.IsValid() && at.compare(p.after) <= 0:
			continue
		case full && at.compare(last) > 0:
			more = true
			continue
		}
		if out = append(out, a); len(out) >= 2*p.limit {
			cut()
		}
	}
	cut()
	return out, total, more
}

func (m *member) affinityList(r *http.Request) (any, error) {
	q := r.URL.Query()
	limit, err := strconv.Atoi(q.Get("limit"))
	if err != nil || limit < 0 {
		return nil, refuse("--limit is a whole number, 0 for all; not %q", q.Get("limit"))
	}
	if limit == 0 || limit > maxPage {
		limit = maxPage
	}
	ask := page{limit: limit}
	if text := q.Get("after"); text != "" {
		if ask.after, err = parsePlace(text); err != nil {
			return nil, err
		}
	}
	view := m.view()
	if name := q.Get("backend"); name != "" {
		b, err := m.backendNamed(name)
		if err != nil {
			return nil, err
		}
		ask.only = b.ID
	}
	records, total, more := ask.take(view.Affinities())
	out := admin.Affinities{Total: total, Records: make([]admin.Affinity, 0, len(records))}
	tell := m.teller(view.Spec())
	for _, a := range records {
		out.Records = append(out.Records, tell.answer(a))
	}
	if more {
		out.Next = placeOf(&records[len(records)-1]).String()
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
	tell := m.teller(view.Spec())
	for _, a := range recordsOf(view, client) {
		out = append(out, tell.answer(a))
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
