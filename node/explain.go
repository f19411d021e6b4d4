package node

import (
	"fmt"
	"net/http"
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
	id, err := pickVIP(spec, r.URL.Query().Get("vip"), 0)
	if err != nil {
		return nil, err
	}
	vip, _ := spec.VIPByID(id)
	set := m.plane.Dump()
	if set == nil {
		return nil, &admin.Error{Status: http.StatusServiceUnavailable, Message: "the data plane was not written by this process yet: what is pinned forwards on, and 'vpnlb status' tells what the node waits for"}
	}
	tables, err := model.FromSet(set, model.Env{Entry: m.plane.LookupEntry})
	if err != nil {
		return nil, err
	}
	x, err := model.Explain(tables, vip.Addr, client, table.IKE)
	if err != nil {
		return nil, refuse("%v", err)
	}
	out := admin.Explanation{Client: client, VIP: vip.Name}
	for _, a := range m.records(client) {
		if a.Class == state.ClassIKE.String() {
			out.Record = &a
		}
	}
	name := slotNames(spec)
	add := func(packet string, c model.Choice) {
		out.Cases = append(out.Cases, admin.Case{Packet: packet, Backend: name(c.Slot), Reason: c.Reason.String(), Why: nameSlots(c.Words, name)})
	}
	add("login (IKE_SA_INIT, IKE_AUTH, fragments)", x.Opening)
	add("everything else (tunnel, rekey, keepalive)", x.Else)
	if x.Record != nil {
		add("any, if it had no record", x.Unknown)
	}
	out.Notes = m.explainNotes(spec, &x)
	return out, nil
}

func (m *member) explainNotes(spec *state.Spec, x *model.Explanation) []string {
	notes := []string{}
	if x.Record != nil && x.RecordStance == table.Leave {
		notes = append(notes, "users behind this address share the record: the first login among them moves the address")
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
