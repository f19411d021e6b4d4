package node

import (
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"github.com/vpnlb/vpnlb/dataplane/maglev"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/sstp"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// chooser says which server a new connection of SSTP belongs to: what the packet
// path would say of a SYN, by the very tables that the kernel holds, so that both
// services of a client meet on one server and `explain` tells the truth.
type chooser struct {
	dump  func() *table.Set // what the plane was written with last; nil: nothing yet
	entry func(table.Key) (table.Entry, bool)

	mu     sync.Mutex
	set    *table.Set // that tables were built from, or that says the same
	tables *model.Tables
}

// current gives the tables of the set in force. Tables of Maglev are built anew
// only when something that matters changed: with each agreed setting, verdict
// or server there is a new set.
func (c *chooser) current() *model.Tables {
	set := c.dump()
	if set == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.set == set {
		return c.tables
	}
	if c.tables != nil {
		same := *c.set
		same.Index = set.Index
		if reflect.DeepEqual(&same, set) {
			c.set = set
			return c.tables
		}
	}
	tables, err := model.FromSet(set, model.Env{Entry: c.entry})
	if err != nil {
		return c.tables // the plane refused such a set too
	}
	c.set, c.tables = set, tables
	return tables
}

// choose implements sstp.Deps.Choose.
func (c *chooser) choose(vip uint8, client netip.Addr) (sstp.Route, bool) {
	tables := c.current()
	if tables == nil {
		return sstp.Route{}, false
	}
	for _, v := range tables.Set().VIPs {
		if v.Index != vip {
			continue
		}
		x, err := model.Explain(tables, v.Addr, client, table.TCP)
		if err != nil || x.Opening.Slot == 0 {
			return sstp.Route{}, false
		}
		r := sstp.Route{Slot: x.Opening.Slot, Reason: x.Opening.Reason.String()}
		if x.Record != nil && x.RecordCounts {
			r.Saw = x.Record.Slot
		}
		return r, true
	}
	return sstp.Route{}, false
}

// instead implements sstp.Deps.Instead: a server that takes unknown clients and is
// not to be avoided, by the client's hash.
func (c *chooser) instead(vip uint8, client [16]byte, avoid func(table.Slot) bool) (sstp.Route, bool) {
	tables := c.current()
	if tables == nil {
		return sstp.Route{}, false
	}
	set := tables.Set()
	pool := slices.DeleteFunc(model.Pool(set, vip, table.TCP), func(b maglev.Backend) bool { return avoid(b.Slot) })
	if len(pool) == 0 {
		return sstp.Route{}, false
	}
	at := maglev.Hash(set.HashKey, table.TCP, client) % uint64(len(pool))
	return sstp.Route{Slot: pool[at].Slot, Reason: "its own server's port is dead"}, true
}
