package model

import (
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// choose is the decision table beside table.Stance. Slot 0 comes with
// DropNoBackend.
func (t *Tables) choose(vip *table.VIP, class table.Class, client netip.Addr, opening bool) (table.Reason, table.Slot) {
	reason := table.ForwardMaglev
	if e, b := t.record(vip.Index, class, client); b != nil {
		if !opening || b.Stance[class-1] != table.Leave {
			return table.ForwardAffinity, e.Slot
		}
		reason = table.ForwardReopened
	}
	slot := t.maglev(vip.Index, class, client)
	if slot == 0 {
		return table.DropNoBackend, 0
	}
	return reason, slot
}
