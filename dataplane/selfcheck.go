package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/maglev"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

const (
	// checkInterval is the time between two self-checks; a failure is told after the
	// second in a row.
	checkInterval = 2 * time.Second
	checkFailures = 2
)

// The client of the synthetic packets: addresses that nobody has. 192.0.0.8 is the
// IPv4 dummy address (RFC 7600), 100::/64 the discard prefix (RFC 6666).
var (
	checkClient4 = netip.MustParseAddr("192.0.0.8")
	checkClient6 = netip.MustParseAddr("100::8")
)

// checkAll repeats the self-check until ctx ends.
func (p *Plane) checkAll(ctx context.Context) {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	failures := 0
	var c checker
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := p.selfCheck(&c)
		if err == nil {
			failures = 0
		} else {
			failures++
		}
		if err != nil && failures < checkFailures {
			continue
		}
		was := p.checked.Swap(&checkResult{err})
		if was == nil || (was.err == nil) != (err == nil) {
			if err != nil {
				p.log.Error("self-check failed", "error", err)
			} else {
				p.log.Info("self-check passed")
			}
		}
	}
}

type checkResult struct{ err error }

// checker remembers which server the synthetic client of each VIP gets: a Maglev
// table takes milliseconds to build.
type checker struct {
	set   *table.Set
	slots map[uint8]table.Slot
	wrote bool // the tables, since a packet came out right
}

func (c *checker) wanted(set *table.Set) map[uint8]table.Slot {
	if c.set != nil && c.set.Generation == set.Generation && len(c.set.VIPs) == len(set.VIPs) {
		return c.slots
	}
	c.set, c.slots = set, make(map[uint8]table.Slot)
	for _, v := range set.VIPs {
		places := maglev.Build(set.HashKey, set.TableSize, model.Pool(set, v.Index, table.IKE))
		c.slots[v.Index] = maglev.Pick(places, set.HashKey, table.IKE, checkKey(v).Client)
	}
	return c.slots
}

// checkKey is the synthetic client's at a VIP.
func checkKey(v table.VIP) table.Key {
	client := checkClient(v)
	bits := client.BitLen()
	if client.Is6() {
		bits = int(v.ClientBits)
	}
	key, _ := client.Prefix(bits)
	return table.Key{Client: key.Addr().As16(), Class: table.IKE}
}

func checkClient(v table.VIP) netip.Addr {
	if v.Addr.Is4() {
		return checkClient4
	}
	return checkClient6
}

// SelfCheck is what the last self-check found: nil while the program is attached, its
// tables are what was written, and by every interface a synthetic packet to each VIP and a
// server's answer come out right. It is nil before the first one.
func (p *Plane) SelfCheck() error {
	if r := p.checked.Load(); r != nil {
		return r.err
	}
	return nil
}

// selfCheck looks once. Tables that are not as written are written again; that is no
// failure, but counted.
func (p *Plane) selfCheck(c *checker) error {
	p.reading.RLock()
	defer p.reading.RUnlock()
	if !p.attached.Load() || !p.synced.Load() {
		return nil
	}
	if err := p.checkLinks(); err != nil {
		return err
	}
	if err := p.mendTables(); err != nil {
		return err
	}
	err := p.checkVIPs(c)
	if err != nil {
		err = p.checkVIPs(c) // the tables may have changed between the look at the set and the packet
	}
	if err != nil && !c.wrote {
		// Nobody compares the Maglev tables: perhaps they are not as written.
		c.wrote = true
		if err := p.rewriteTables(err); err != nil {
			return err
		}
		err = p.checkVIPs(c)
	}
	if err == nil {
		c.wrote = false
	}
	return err
}

// checkVIPs sends a synthetic packet to each VIP, and a server's answer, by each interface.
func (p *Plane) checkVIPs(c *checker) error {
	set := p.set.Load()
	entrances, err := p.entrances()
	if err != nil {
		return err
	}
	wanted := c.wanted(set)
	for _, v := range set.VIPs {
		way, err := p.wayTo(c, set, v, wanted[v.Index])
		if err != nil {
			return err
		}
		for i := range entrances {
			at := &entrances[i]
			if err := p.checkVIP(set, v, way, at); err != nil {
				return fmt.Errorf("synthetic packet to %s, in by %s: %w", v.Addr, at.name, err)
			}
			if err := p.checkReply(set, v, way.slot, at); err != nil {
				return fmt.Errorf("synthetic reply from %s, in by %s: %w", v.Addr, at.name, err)
			}
		}
	}
	return nil
}

// checkLinks: this binary's program runs on every interface that is there.
func (p *Plane) checkLinks() error {
	info, err := p.coll.Programs["vpnlb"].Info()
	if err != nil {
		return fmt.Errorf("inspect program: %w", err)
	}
	id, _ := info.ID()
	p.status.Lock()
	defer p.status.Unlock()
	var faults []error
	for _, a := range p.attachments {
		if a.link == nil || a.old {
			faults = append(faults, fmt.Errorf("%s has no program of ours", a.name))
			continue
		}
		on, err := a.link.Info()
		if err != nil {
			faults = append(faults, fmt.Errorf("inspect link of %s: %w", a.name, err))
		} else if x := on.XDP(); x == nil || int(x.Ifindex) != a.index {
			faults = append(faults, fmt.Errorf("%s is detached", a.name))
		} else if on.Program != id {
			faults = append(faults, fmt.Errorf("%s runs program %d, want %d", a.name, on.Program, id))
		}
	}
	return errors.Join(faults...)
}

// mendTables compares the half in force with what was written, and writes anew what
// somebody changed.
func (p *Plane) mendTables() error {
	p.writer.Lock()
	defer p.writer.Unlock()
	set := p.set.Load()
	if set == nil {
		return nil
	}
	same, err := p.tables.holds(set)
	if err != nil || same {
		return err
	}
	p.mended.Add(1)
	p.log.Error("tables were changed by somebody else: written again")
	return p.tables.write(set)
}

// rewriteTables writes the set in force again, because a packet came out wrong.
func (p *Plane) rewriteTables(why error) error {
	p.writer.Lock()
	defer p.writer.Unlock()
	p.mended.Add(1)
	p.log.Error("self-check: the tables are written again", "error", why)
	return p.tables.write(p.set.Load())
}

// holds compares the rules and backends in force, and the backends by address, with
// a set.
func (t *tables) holds(s *table.Set) (bool, error) {
	half := t.control.selector()
	var have bpf.PlaneRules
	if err := t.coll.Maps["plane_rules"].Lookup(half, &have); err != nil {
		return false, fmt.Errorf("read rules in force: %w", err)
	}
	r, err := renderServers(s)
	if err != nil {
		return false, err
	}
	r.rules.Serial = have.Serial // is not the set's
	if have != r.rules {
		return false, nil
	}
	for _, same := range []func() (bool, error){
		func() (bool, error) { return holdsArray(t.coll.Maps["backends"], half*slots, r.backends) },
		func() (bool, error) { return holdsArray(t.coll.Maps["backends6"], half*slots, r.backends6) },
		func() (bool, error) { return holdsArray(t.coll.Maps["servers"], half*serverBuckets, r.servers) },
		func() (bool, error) { return holdsArray(t.coll.Maps["servers6"], half*serverBuckets, r.servers6) },
	} {
		if ok, err := same(); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

func holdsArray[V comparable](m *ebpf.Map, first uint32, want []V) (bool, error) {
	for i, w := range want {
		var have V
		if err := m.Lookup(first+uint32(i), &have); err != nil {
			return false, fmt.Errorf("read map %s: %w", m.String(), err)
		}
		if have != w {
			return false, nil
		}
	}
	return true, nil
}

// entrance is where and how a packet of a configured interface comes in: of a bond by
// any member, of a VLAN device with its tag.
type entrance struct {
	name  string // of the interface, and of the member
	index int
	mac   [6]byte
	tag   uint16 // as in struct interface; 0 = none
}

// entrances lists those of all configured interfaces.
func (p *Plane) entrances() ([]entrance, error) {
	devices, err := p.listDevices()
	if err != nil {
		return nil, err
	}
	var out []entrance
	for _, c := range p.cfg.Interfaces {
		dev, err := devices.find(c.Name)
		if err != nil {
			return nil, err
		}
		below, err := devices.physical(dev)
		if err != nil {
			return nil, err
		}
		base := baseInterface(devices, dev)
		carriers := devices.carriers(below)
		if len(carriers) == 0 {
			return nil, fmt.Errorf("interface %s has no members", c.Name)
		}
		for _, by := range carriers {
			e := entrance{name: c.Name, index: by.Attrs().Index, mac: base.Mac, tag: base.Vlan}
			if by.Attrs().Index != dev.Attrs().Index {
				e.name += " on " + by.Attrs().Name
			}
			if e.tag == 0 {
				copy(e.mac[:], by.Attrs().HardwareAddr)
			}
			out = append(out, e)
		}
	}
	return out, nil
}

// wayTo says what becomes of the synthetic client's packet to a VIP: as the tables say or,
// where somebody forged his way to a record for an address that nobody has, as that says.
func (p *Plane) wayTo(c *checker, set *table.Set, v table.VIP, slot table.Slot) (way, error) {
	w := way{slot: slot, reason: table.ForwardMaglev}
	if slot == 0 {
		w.reason = table.DropNoBackend
	}
	records := make(map[table.Key]table.Entry)
	for class := table.Class(1); class <= table.Classes; class++ {
		key := checkKey(v)
		key.Class = class
		r, found, err := p.affinities.lookup(key)
		if err != nil {
			return w, err
		}
		if found {
			records[key] = r.Entry
		}
	}
	if len(records) == 0 {
		return w, nil
	}
	tables, err := model.FromSet(set, model.Env{Entry: func(k table.Key) (table.Entry, bool) { e, ok := records[k]; return e, ok }})
	if err != nil {
		return w, err
	}
	x, err := model.Explain(tables, v.Addr, checkClient(v), table.IKE)
	if err != nil {
		return w, err
	}
	return way{slot: x.Opening.Slot, reason: x.Opening.Reason}, nil
}

// way is what must become of a synthetic request.
type way struct {
	slot   table.Slot
	reason table.Reason
}

// checkVIP sends one IKE_SA_INIT request through the program, without a trace in
// counters, ticks or evidence, and compares what comes out with what the tables say.
func (p *Plane) checkVIP(set *table.Set, v table.VIP, w way, at *entrance) error {
	reason, out, err := p.try(at, checkFrame(at, checkClient(v), v.Addr, false))
	if err != nil {
		return err
	}
	return judgeCheck(set, v, w, reason, out)
}

// checkReply does so with the answer of a server: the one that the request went to, else
// any of the VIP's.
func (p *Plane) checkReply(set *table.Set, v table.VIP, slot table.Slot, at *entrance) error {
	var from *table.Backend
	for i := range set.Backends {
		if b := &set.Backends[i]; b.VIP == v.Index && !b.DSR && (from == nil || b.Slot == slot) {
			from = b
		}
	}
	if from == nil {
		return nil
	}
	reason, out, err := p.try(at, checkFrame(at, from.Addr, checkClient(v), true))
	if err != nil {
		return err
	}
	return judgeReply(set, v, reason, out)
}

// try runs one frame through the program as the self-check does.
func (p *Plane) try(at *entrance, frame []byte) (table.Reason, []byte, error) {
	run := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256),
		Context: testContext{DataEnd: uint32(len(frame)), Ifindex: uint32(at.index)}}
	var result uint32
	err := p.ns.do(func() (err error) {
		result, err = p.coll.Programs["vpnlb_check"].Run(run)
		return err
	})
	if err != nil {
		return 0, nil, fmt.Errorf("run program: %w", err)
	}
	return table.Reason(result), run.DataOut, nil
}

// testContext is the struct xdp_md of BPF_PROG_TEST_RUN.
type testContext struct{ Data, DataEnd, DataMeta, Ifindex, RXQueue, Egress uint32 }

// unreachable reports whether a next hop is not there, or too narrow: not the program's
// fault.
func unreachable(r table.Reason) bool {
	switch r {
	case table.DropNoRoute, table.DropNoNeighbour, table.DropTooBig, table.AnswerTooBig, table.PassNotForwarded:
		return true
	}
	return false
}

// byKernel reports whether the kernel sends the rewritten packet on.
func byKernel(r table.Reason) bool {
	return r == table.PassNoNeighbour || r == table.PassCannotTransmit || r == table.PassMustFragment
}

// judgeCheck is pure.
func judgeCheck(set *table.Set, v table.VIP, w way, reason table.Reason, out []byte) error {
	switch {
	case w.slot == 0 && reason == w.reason, w.slot != 0 && unreachable(reason):
		return nil
	case w.slot == 0, reason != w.reason && !byKernel(reason):
		return fmt.Errorf("%s, want %s", reason, w.reason)
	}
	for _, b := range set.Backends {
		if b.Slot != w.slot {
			continue
		}
		want := b.Addr
		if b.DSR {
			want = v.Addr
		}
		return checkOut(out, want, false)
	}
	return fmt.Errorf("the table names slot %d, which has no backend", w.slot)
}

// judgeReply is pure. An inside prefix may hold the synthetic client.
func judgeReply(set *table.Set, v table.VIP, reason table.Reason, out []byte) error {
	want := table.ForwardReturn
	if slices.ContainsFunc(set.NotReturn, func(n netip.Prefix) bool { return n.Contains(checkClient(v)) }) {
		want = table.PassNotReturn
	}
	switch {
	case want == table.ForwardReturn && unreachable(reason), want == table.PassNotReturn && reason == want:
		return nil
	case want == table.PassNotReturn, reason != want && !byKernel(reason):
		return fmt.Errorf("%s, want %s", reason, want)
	}
	return checkOut(out, v.Addr, true)
}
