package model

import (
	"fmt"
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/maglev"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Choice is where one kind of a client's packets goes now.
type Choice struct {
	Reason table.Reason
	Slot   table.Slot // 0: nowhere
	Words  string     // why, for a person; slots stand for servers
}

// Explanation says where a client's packets go, and why.
type Explanation struct {
	VIP, Client netip.Addr
	Class       table.Class
	Index       uint64 // log index of the set
	Generation  uint64 // log index of the Maglev tables and permits
	Place       uint32 // of the client in the Maglev table
	Pool        int    // servers in that table

	Record       *table.Entry // as stored; nil: none
	RecordStance table.Stance // of its server
	RecordCounts bool
	RecordWords  string

	Unknown Choice // where he would go without a record
	Opening Choice // his handshakes and fragmented datagrams
	Else    Choice // everything else of his
}

// Explain says where the packets of a client to a VIP go.
func Explain(t *Tables, vip, client netip.Addr, class table.Class) (Explanation, error) {
	v := t.vips[vip]
	switch {
	case v == nil:
		return Explanation{}, fmt.Errorf("explain %v: %v is no vip", client, vip)
	case class == 0 || class > table.Classes:
		return Explanation{}, fmt.Errorf("explain %v: class %d does not exist", client, class)
	case client.Is4() != vip.Is4():
		return Explanation{}, fmt.Errorf("explain %v: %v is of another family", client, vip)
	}
	x := Explanation{VIP: vip, Client: client, Class: class, Index: t.set.Index, Generation: t.set.Generation}
	x.Place = maglev.Index(maglev.Hash(t.set.HashKey, class, client.As16()), t.set.TableSize)
	x.Pool = len(Pool(t.set, v.Index, class))
	x.explainRecord(t, v)
	x.Unknown = x.fromMaglev(t, v, table.ForwardMaglev, "no record counts")
	x.Opening, x.Else = x.known(t, v, true), x.known(t, v, false)
	return x, nil
}

func (x *Explanation) explainRecord(t *Tables, v *table.VIP) {
	x.RecordWords = "no record"
	if t.env.Entry == nil {
		return
	}
	e, ok := t.env.Entry(table.Key{Client: x.Client.As16(), Class: x.Class})
	if !ok {
		return
	}
	x.Record = &e
	b := t.bySlot[e.Slot]
	if b == nil {
		x.RecordWords = fmt.Sprintf("the record names slot %d, where no server is", e.Slot)
		return
	}
	x.RecordStance = b.Stance[x.Class-1]
	switch {
	case b.VIP != v.Index:
		x.RecordWords = fmt.Sprintf("the record names slot %d, a server of another vip", e.Slot)
	case !x.RecordStance.Known():
		x.RecordWords = fmt.Sprintf("the record names slot %d, %s", e.Slot, stanceWords(x.RecordStance))
	default:
		x.RecordCounts = true
		x.RecordWords = fmt.Sprintf("the record names slot %d, %s", e.Slot, stanceWords(x.RecordStance))
	}
}

// known says where packets go with the record as it is.
func (x *Explanation) known(t *Tables, v *table.VIP, opening bool) Choice {
	reason, slot := t.choose(v, x.Class, x.Client, opening)
	switch {
	case reason == table.ForwardAffinity:
		return Choice{reason, slot, x.RecordWords}
	case x.RecordCounts:
		return x.fromMaglev(t, v, table.ForwardReopened, x.RecordWords)
	}
	return x.fromMaglev(t, v, table.ForwardMaglev, x.RecordWords)
}

func (x *Explanation) fromMaglev(t *Tables, v *table.VIP, reason table.Reason, why string) Choice {
	slot := t.maglev(v.Index, x.Class, x.Client)
	if slot == 0 {
		return Choice{table.DropNoBackend, 0, why + "; no server takes unknown clients, so the packet is dropped"}
	}
	return Choice{reason, slot, fmt.Sprintf("%s; place %d of %d in the table of generation %d (%d servers) holds slot %d",
		why, x.Place, t.set.TableSize, x.Generation, x.Pool, slot)}
}

func stanceWords(s table.Stance) string {
	switch s {
	case table.Take:
		return "which takes new clients"
	case table.Keep:
		return "which keeps its clients and takes no unknown ones"
	case table.Leave:
		return "which is down, offline or removed: it keeps what is open, and new logins go elsewhere"
	case table.Void:
		return "whose records are void"
	}
	return "which has no such service"
}
