package model

import (
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// choose is the decision table beside table.Stance, for a client key. Slot 0
// comes with DropNoBackend.
func (t *Tables) choose(vip *table.VIP, class table.Class, client netip.Addr, opening bool) (table.Reason, table.Slot) {
	e, b := t.record(vip.Index, class, client)
	switch {
	case b == nil:
		return t.unknown(vip, class, client)
	case !opening || b.Stance[class-1] != table.Leave:
		return table.ForwardAffinity, e.Slot
	}
	return t.fromMaglev(vip, class, client, table.ForwardReopened)
}

// unknown is where a client goes without a record of the class: to the server of
// his other class, if that may take him, so that one user stays on one server.
func (t *Tables) unknown(vip *table.VIP, class table.Class, client netip.Addr) (table.Reason, table.Slot) {
	if e, b := t.record(vip.Index, otherClass(class), client); b != nil && mayFollow(b, class) {
		return table.ForwardOtherClass, e.Slot
	}
	return t.fromMaglev(vip, class, client, table.ForwardMaglev)
}

// mayFollow reports whether packets of a class may follow the other class's record
// to a server. TCP to a DSR server never gets a record of its own, so a connection
// that Maglev placed would be torn when the record of IKE comes.
func mayFollow(b *table.Backend, class table.Class) bool {
	return b.Stance[class-1].MayTake() && (class != table.TCP || !b.DSR)
}

func (t *Tables) fromMaglev(vip *table.VIP, class table.Class, client netip.Addr, reason table.Reason) (table.Reason, table.Slot) {
	slot := t.maglev(vip.Index, class, client)
	if slot == 0 {
		return table.DropNoBackend, 0
	}
	return reason, slot
}

func otherClass(c table.Class) table.Class { return table.IKE + table.TCP - c }

// clientKey is the address that records and Maglev know a client by: IPv6 is cut to
// the VIP's ClientBits.
func clientKey(vip *table.VIP, client netip.Addr) netip.Addr {
	if client.Is4() {
		return client
	}
	cut, err := client.Prefix(int(vip.ClientBits))
	if err != nil {
		return client // FromSet refuses such a VIP
	}
	return cut.Addr()
}
