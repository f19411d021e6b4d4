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
	key := clientKey(v, client)
	x := Explanation{VIP: vip, Client: client, Class: class, Index: t.set.Index, Generation: t.set.Generation}
	x.Place = maglev.Index(maglev.Hash(t.set.HashKey, class, key.As16()), t.set.TableSize)
	x.Pool = len(Pool(t.set, v.Index, class))
	x.explainRecord(t, v, key)
	x.Unknown = x.unknown(t, v, key, "no record counts")
	x.Opening, x.Else = x.known(t, v, key, true), x.known(t, v, key, false)
	return x, nil
}

func (x *Explanation) explainRecord(t *Tables, v *table.VIP, key netip.Addr) {
	x.RecordWords = "no record"
	if t.env.Entry == nil {
		return
	}
	e, ok := t.env.Entry(table.Key{Client: key.As16(), Class: x.Class})
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

// known says where packets go with the record as it is. TCP cannot be told apart:
// each of its packets counts as an opening.
func (x *Explanation) known(t *Tables, v *table.VIP, key netip.Addr, opening bool) Choice {
	reason, slot := t.choose(v, x.Class, key, opening || x.Class == table.TCP)
	switch {
	case reason == table.ForwardAffinity:
		return Choice{reason, slot, x.RecordWords}
	case x.RecordCounts:
		return x.fromMaglev(t, v, key, table.ForwardReopened, x.RecordWords)
	}
	return x.unknown(t, v, key, x.RecordWords)
}

// unknown says where packets go for which no record of their class counts.
func (x *Explanation) unknown(t *Tables, v *table.VIP, key netip.Addr, why string) Choice {
	reason, slot := t.unknown(v, x.Class, key)
	if reason != table.ForwardOtherClass {
		return x.fromMaglev(t, v, key, table.ForwardMaglev, why)
	}
	return Choice{reason, slot, fmt.Sprintf("%s; the record of his other service (%s) names slot %d, which may take this one too",
		why, classWords(otherClass(x.Class)), slot)}
}

func (x *Explanation) fromMaglev(t *Tables, v *table.VIP, key netip.Addr, reason table.Reason, why string) Choice {
	slot := t.maglev(v.Index, x.Class, key)
	if slot == 0 {
		return Choice{table.DropNoBackend, 0, why + "; no server takes unknown clients, so the packet is dropped"}
	}
	return Choice{reason, slot, fmt.Sprintf("%s; place %d of %d in the table of generation %d (%d servers) holds slot %d",
		why, x.Place, t.set.TableSize, x.Generation, x.Pool, slot)}
}

func classWords(c table.Class) string {
	if c == table.TCP {
		return "TCP"
	}
	return "IKE"
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
