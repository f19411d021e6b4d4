package node

import (
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/admin"
)

// explain asks the model, fed with the tables that this node's kernel holds
// now, so that it tells what the next packet here will meet even where the
// node lags behind the agreement.
func (m *member) explain(r *http.Request) (any, error) {
	client, err := queryClient(r)
	if err != nil {
		return nil, err
	}
	spec := m.spec()
	vip, err := dialled(spec, r.URL.Query().Get("vip"), client)
	if err != nil {
		return nil, err
	}
	class, err := queryClass(r, vip)
	if err != nil {
		return nil, err
	}
	set := m.plane.Dump()
	if set == nil {
		return nil, &admin.Error{Status: http.StatusServiceUnavailable, Message: "the data plane was not written by this process yet: what is pinned forwards on, and 'vpnlb status' tells what the node waits for"}
	}
	tables, err := model.FromSet(set, model.Env{Entry: m.plane.LookupEntry})
	if err != nil {
		return nil, err
	}
	x, err := model.Explain(tables, vip.Addr, client, table.Class(class))
	if err != nil {
		return nil, refuse("%v", err)
	}
	out := admin.Explanation{Client: client, VIP: vip.Name, Class: class.String()}
	for _, a := range m.records(client) {
		if a.Class == class.String() && a.VIP == vip.Name {
			out.Record = &a
		}
	}
	if cases, ok := hairpin(spec, client); ok {
		out.Cases = cases
		return out, nil
	}
	name := slotNames(spec)
	add := func(packet string, c model.Choice) {
		out.Cases = append(out.Cases, admin.Case{Packet: packet, Backend: name(c.Slot), Reason: c.Reason.String(), Why: nameSlots(c.Words, name)})
	}
	if class == state.ClassTCP {
		add("new connection (SYN)", x.Opening)
		if !vip.SSTP.Ends() { // else the node that holds it knows its server
			add("established connection", x.Else)
		}
	} else {
		add("login (IKE_SA_INIT, IKE_AUTH, fragments)", x.Opening)
		add("everything else (tunnel, rekey, keepalive)", x.Else)
	}
	if x.Record != nil {
		add("any, if it had no record", x.Unknown)
	}
	out.Notes = m.explainNotes(spec, &x)
	if b, ok := spec.BackendBySlot(state.Slot(x.Opening.Slot)); ok && class == state.ClassTCP && vip.SSTP.Ends() {
		out.Notes = append(out.Notes, "TLS ends on the node, which shows this client certificate "+vip.CertificateOf(b))
	}
	return out, nil
}

// dialled is the VIP that is meant: by name, else the only one of the client's
// family.
func dialled(spec *state.Spec, name string, client netip.Addr) (*state.VIP, error) {
	var found *state.VIP
	count := 0
	for i := range spec.VIPs {
		v := &spec.VIPs[i]
		if v.Name == name {
			return v, nil
		}
		if v.Addr.Is4() == client.Is4() {
			found = v
			count++
		}
	}
	switch {
	case name != "":
		return nil, missing("no VIP is called %q; 'vpnlb vip list' shows them", name)
	case count == 1:
		return found, nil
	case count == 0:
		return nil, refuse("no VIP is of the family of %s: it can dial none", client)
	}
	return nil, refuse("there are %d VIPs that %s could dial: name the one that is meant with --vip", count, client)
}

func queryClass(r *http.Request, vip *state.VIP) (state.Class, error) {
	switch word := r.URL.Query().Get("class"); {
	case word == "" || word == state.ClassIKE.String():
		return state.ClassIKE, nil
	case word != state.ClassTCP.String():
		return 0, refuse("--class is ike or tcp, not %q", word)
	case vip.SSTP == state.SSTPOff:
		return 0, refuse("VIP %s has no SSTP: 'vpnlb vip add %s %s --sstp passthrough' (or offload, reencrypt) makes it so", vip.Name, vip.Name, vip.Addr)
	}
	return state.ClassTCP, nil
}

func (m *member) explainNotes(spec *state.Spec, x *model.Explanation) []string {
	notes := limitNotes(spec, x)
	if why := noReplies(spec, x.Client); why != "" {
		notes = append(notes, why)
	}
	for _, c := range []model.Choice{x.Opening, x.Else} {
		if b, ok := spec.BackendBySlot(state.Slot(c.Slot)); ok && b.Mode == state.ModeDSR {
			notes = append(notes, fmt.Sprintf("%s is in mode dsr: its replies go to the client directly and are not seen here", b.Name))
			break
		}
	}
	if lag := spec.Index - min(spec.Index, m.sync.index.Load()); lag > 0 {
		notes = append(notes, fmt.Sprintf("the data plane is %d log entries behind the agreement", lag))
	}
	if !m.caughtUp.Load() {
		notes = append(notes, "this node has not caught up with the leader since it started")
	}
	return notes
}

// slotNames gives the server in a slot.
func slotNames(spec *state.Spec) func(table.Slot) string {
	return func(s table.Slot) string {
		if b, ok := spec.BackendBySlot(state.Slot(s)); ok {
			return b.Name
		}
		return ""
	}
}

var slotWord = regexp.MustCompile(`slot (\d+)`)

// nameSlots puts servers' names where the model, which knows none, says slots.
func nameSlots(words string, name func(table.Slot) string) string {
	return slotWord.ReplaceAllStringFunc(words, func(match string) string {
		n, err := strconv.ParseUint(match[len("slot "):], 10, 16)
		if err != nil || name(table.Slot(n)) == "" {
			return match
		}
		return name(table.Slot(n))
	})
}
