package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/ike"
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
// tables are what was written, and a synthetic packet to each VIP comes out right. It
// is nil before the first one.
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

// checkVIPs sends a synthetic packet to each VIP.
func (p *Plane) checkVIPs(c *checker) error {
	set := p.set.Load()
	wanted := c.wanted(set)
	for _, v := range set.VIPs {
		if err := p.checkVIP(set, v, wanted[v.Index]); err != nil {
			return fmt.Errorf("synthetic packet to %s: %w", v.Addr, err)
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

// checkVIP sends one IKE_SA_INIT request through the program, without a trace in
// counters, ticks or evidence, and compares what comes out with what the tables say.
func (p *Plane) checkVIP(set *table.Set, v table.VIP, slot table.Slot) error {
	for class := table.Class(1); class <= table.Classes; class++ {
		key := checkKey(v)
		key.Class = class
		if _, found, err := p.affinities.lookup(key); err != nil || found {
			// Somebody forged his way to a record for an address that nobody has. What it
			// does to the packet proves nothing of the program.
			return err
		}
	}
	p.status.Lock()
	a := p.attachments[0]
	p.status.Unlock()
	var in bpf.PlaneInterface
	if err := p.coll.Maps["interfaces"].Lookup(uint32(a.index%interfacePlaces), &in); err != nil || int(in.Ifindex) != a.index {
		return fmt.Errorf("interface %s is not known to the program (%v)", a.name, err)
	}
	frame := checkFrame(in.Mac, checkClient(v), v.Addr)
	out := make([]byte, len(frame)+256)
	run := &ebpf.RunOptions{Data: frame, DataOut: out, Context: testContext{DataEnd: uint32(len(frame)), Ifindex: uint32(a.index)}}
	var result uint32
	err := p.ns.do(func() (err error) {
		result, err = p.coll.Programs["vpnlb_check"].Run(run)
		return err
	})
	if err != nil {
		return fmt.Errorf("run program: %w", err)
	}
	return judgeCheck(set, v, slot, table.Reason(result), run.DataOut)
}

// testContext is the struct xdp_md of BPF_PROG_TEST_RUN.
type testContext struct{ Data, DataEnd, DataMeta, Ifindex, RXQueue, Egress uint32 }

// judgeCheck is pure. A next hop that is not there is not the program's fault.
func judgeCheck(set *table.Set, v table.VIP, slot table.Slot, reason table.Reason, out []byte) error {
	if slot == 0 {
		if reason != table.DropNoBackend {
			return fmt.Errorf("%s, want %s", reason, table.DropNoBackend)
		}
		return nil
	}
	switch reason {
	case table.DropNoRoute, table.DropNoNeighbour, table.DropTooBig, table.AnswerTooBig:
		return nil
	case table.ForwardMaglev, table.PassNoNeighbour, table.PassCannotTransmit, table.PassMustFragment:
	default:
		return fmt.Errorf("%s, want %s", reason, table.ForwardMaglev)
	}
	for _, b := range set.Backends {
		if b.Slot != slot {
			continue
		}
		want := b.Addr
		if b.DSR {
			want = v.Addr
		}
		return checkOut(out, want)
	}
	return fmt.Errorf("the table names slot %d, which has no backend", slot)
}

// checkOut: is it a packet to an address, and are its sums right? It may carry a tag.
func checkOut(out []byte, to netip.Addr) error {
	at := 14
	if len(out) > 18 && binary.BigEndian.Uint16(out[12:]) == 0x8100 {
		at = 18
	}
	var got netip.Addr
	var sum uint64
	var payload []byte
	switch {
	case to.Is4() && len(out) >= at+28:
		ip := out[at:]
		if ones(sumBytes(ip[:20])) != 0xffff {
			return errors.New("the header's checksum is wrong")
		}
		got, _ = netip.AddrFromSlice(ip[16:20])
		payload, sum = ip[20:], sumBytes(ip[12:20])
	case to.Is6() && len(out) >= at+48:
		ip := out[at:]
		got, _ = netip.AddrFromSlice(ip[24:40])
		payload, sum = ip[40:], sumBytes(ip[8:40])
	default:
		return fmt.Errorf("%d bytes came out", len(out))
	}
	if got != to {
		return fmt.Errorf("it goes to %s, want %s", got, to)
	}
	if ones(sum+17+uint64(len(payload))+sumBytes(payload)) != 0xffff {
		return errors.New("the UDP checksum is wrong")
	}
	return nil
}

// checkFrame is an IKE_SA_INIT request to the VIP's port 500 (RFC 7296 section 3.1).
func checkFrame(mac [6]byte, from, to netip.Addr) []byte {
	h := ike.Header{InitiatorSPI: 1, NextPayload: ike.SecurityAssoc, Version: ike.MajorVersion << 4, Exchange: ike.SAInit,
		Flags: ike.FlagInitiator, Length: ike.HeaderLen}
	udp := make([]byte, 8, 8+ike.HeaderLen)
	binary.BigEndian.PutUint16(udp[0:], ike.Port)
	binary.BigEndian.PutUint16(udp[2:], ike.Port)
	binary.BigEndian.PutUint16(udp[4:], 8+ike.HeaderLen)
	udp = h.Append(udp)
	src, dst := from.AsSlice(), to.AsSlice()
	sum := ones(sumBytes(src) + sumBytes(dst) + 17 + uint64(len(udp)) + sumBytes(udp))
	if sum = ^sum; sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	frame := append(mac[:], 0, 0, 0, 0, 0, 0)
	if from.Is4() {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, 17
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(udp)))
		copy(ip[12:], src)
		copy(ip[16:], dst)
		binary.BigEndian.PutUint16(ip[10:], ^ones(sumBytes(ip)))
		return append(append(append(frame, 8, 0), ip...), udp...)
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, 17, 64
	binary.BigEndian.PutUint16(ip[4:], uint16(len(udp)))
	copy(ip[8:], src)
	copy(ip[24:], dst)
	return append(append(append(frame, 0x86, 0xdd), ip...), udp...)
}

// sumBytes adds big-endian 16-bit words, ones folds them (RFC 1071).
func sumBytes(b []byte) (sum uint64) {
	for i, x := range b {
		sum += uint64(x) << (8 * (1 - i%2))
	}
	return sum
}

func ones(sum uint64) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
