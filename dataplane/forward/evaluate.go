package forward

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Passage is a packet that must pass this host, and by which interfaces. The
// unspecified address (0.0.0.0, ::) stands for any: a client's. A rule that asks for it
// does not match.
type Passage struct {
	Name             string // of the traffic, for a sentence: "replies of servers"
	In, Out          string // interfaces; Out is empty for a packet to this host itself
	Source, Dest     netip.Addr
	Protocol         byte // IPPROTO_UDP or IPPROTO_TCP; of TCP, an opening segment
	SrcPort, DstPort uint16
}

// ruleset is one table of the kernel as far as a verdict depends on it.
type ruleset struct {
	table  *nftables.Table
	chains map[string][]*nftables.Rule
	sets   map[string]*setContent
	index  func(iface string) uint32 // the interface's index; 0: none
}

// setContent is a set or verdict map; complete is false where its form is unknown here.
type setContent struct {
	elements []nftables.SetElement // of intervals: starts and ends, ascending
	interval bool
	complete bool
}

// maxDepth bounds jumps between chains; the kernel allows 16 (NFT_JUMP_STACK_SIZE).
const maxDepth = 16

// outcome is what a rule or chain makes of a packet.
type outcome struct {
	kind  expr.VerdictKind // accept, drop, return or continue; jump and goto name a chain
	chain string           // to go to, or for a drop: where it stands
}

// run follows a packet through a chain. What cannot be evaluated (connection state,
// limits, marks) does not match: the node's packets pass the kernel on one way
// only, so no connection tracking ever sees their flows whole.
func (r *ruleset) run(chain string, p *Passage, depth int) outcome {
	if depth > maxDepth {
		return outcome{kind: expr.VerdictContinue}
	}
	for _, rule := range r.chains[chain] {
		o := r.rule(rule.Exprs, p)
		switch o.kind {
		case expr.VerdictAccept, expr.VerdictReturn:
			return o
		case expr.VerdictDrop:
			return outcome{expr.VerdictDrop, chain}
		case expr.VerdictJump:
			if o = r.run(o.chain, p, depth+1); o.kind == expr.VerdictAccept || o.kind == expr.VerdictDrop {
				return o
			}
		case expr.VerdictGoto:
			return r.run(o.chain, p, depth+1)
		}
	}
	return outcome{kind: expr.VerdictContinue}
}

// rule evaluates one rule's expressions, in order.
func (r *ruleset) rule(exprs []expr.Any, p *Passage) outcome {
	regs := make(registers)
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Verdict:
			return outcome{e.Kind, e.Chain}
		case *expr.Reject:
			return outcome{kind: expr.VerdictDrop}
		case *expr.Lookup:
			if e.IsDestRegSet { // a verdict map, or a map of values, which is not known here
				return r.verdictMap(e, regs)
			}
			if !r.inSet(e, regs) {
				return outcome{kind: expr.VerdictContinue}
			}
		default:
			if !r.plain(e, regs, p) {
				return outcome{kind: expr.VerdictContinue}
			}
		}
	}
	return outcome{kind: expr.VerdictContinue}
}

// plain evaluates an expression that loads, changes or compares a register, or has
// no effect here. False: the rule does not match, or it cannot be told.
func (r *ruleset) plain(e expr.Any, regs registers, p *Passage) bool {
	switch e := e.(type) {
	case *expr.Meta:
		return !e.SourceRegister && regs.set(e.Register, r.meta(e.Key, p))
	case *expr.Payload:
		return e.OperationType == expr.PayloadLoad && regs.set(e.DestRegister, p.payload(e.Base, e.Offset, e.Len))
	case *expr.Immediate:
		return regs.set(e.Register, e.Data)
	case *expr.Ct:
		return !e.SourceRegister && regs.set(e.Register, p.connection(e.Key))
	case *expr.Bitwise:
		return regs.set(e.DestRegister, masked(regs.get(e.SourceRegister, int(e.Len)), e.Mask, e.Xor))
	case *expr.Cmp:
		have := regs.get(e.Register, len(e.Data))
		return have != nil && holds(e.Op, bytes.Compare(have, e.Data))
	case *expr.Range:
		have := regs.get(e.Register, len(e.FromData))
		if have == nil {
			return false
		}
		in := bytes.Compare(have, e.FromData) >= 0 && bytes.Compare(have, e.ToData) <= 0
		return in == (e.Op == expr.CmpOpEq)
	case *expr.Match:
		return e.Name == "comment"
	case *expr.Counter, *expr.Log, *expr.Objref:
		return true
	}
	return false
}

func holds(op expr.CmpOp, order int) bool {
	switch op {
	case expr.CmpOpEq:
		return order == 0
	case expr.CmpOpNeq:
		return order != 0
	case expr.CmpOpLt:
		return order < 0
	case expr.CmpOpLte:
		return order <= 0
	case expr.CmpOpGt:
		return order > 0
	default:
		return order >= 0
	}
}

func masked(have, mask, xor []byte) []byte {
	if have == nil || len(mask) != len(have) || len(xor) != len(have) {
		return nil
	}
	out := make([]byte, len(have))
	for i := range have {
		out[i] = have[i]&mask[i] ^ xor[i]
	}
	return out
}

// registers hold what expressions loaded, by register number.
type registers map[uint32][]byte

// set reports false for what is not known.
func (regs registers) set(n uint32, value []byte) bool {
	if value == nil {
		return false
	}
	regs[n] = value
	return true
}

// get gives the first size bytes of a register; nil: it does not hold so many.
func (regs registers) get(n uint32, size int) []byte {
	if len(regs[n]) < size {
		return nil
	}
	return regs[n][:size]
}

// find looks a value up in a set.
func (s *setContent) find(key []byte) *nftables.SetElement {
	if !s.interval {
		for i := range s.elements {
			if bytes.Equal(s.elements[i].Key, key) {
				return &s.elements[i]
			}
		}
		return nil
	}
	var found *nftables.SetElement
	for i := range s.elements { // the last start or end at or below the key counts
		if e := &s.elements[i]; len(e.Key) == len(key) && bytes.Compare(e.Key, key) <= 0 {
			found = e
		}
	}
	if found == nil || found.IntervalEnd {
		return nil
	}
	return found
}

func (r *ruleset) inSet(e *expr.Lookup, regs registers) bool {
	set := r.sets[e.SetName]
	if set == nil || !set.complete || regs[e.SourceRegister] == nil {
		return false
	}
	return (set.find(regs[e.SourceRegister]) != nil) != e.Invert
}

func (r *ruleset) verdictMap(e *expr.Lookup, regs registers) outcome {
	set := r.sets[e.SetName]
	if set == nil || !set.complete || regs[e.SourceRegister] == nil {
		return outcome{kind: expr.VerdictContinue}
	}
	found := set.find(regs[e.SourceRegister])
	if found == nil || found.VerdictData == nil {
		return outcome{kind: expr.VerdictContinue}
	}
	return outcome{found.VerdictData.Kind, found.VerdictData.Chain}
}

// meta gives what a packet's surroundings are; nil: not known.
func (r *ruleset) meta(key expr.MetaKey, p *Passage) []byte {
	switch key {
	case expr.MetaKeyIIFNAME:
		return interfaceName(p.In)
	case expr.MetaKeyOIFNAME:
		return interfaceName(p.Out)
	case expr.MetaKeyIIF:
		return binary.NativeEndian.AppendUint32(nil, r.index(p.In))
	case expr.MetaKeyOIF:
		return binary.NativeEndian.AppendUint32(nil, r.index(p.Out))
	case expr.MetaKeyNFPROTO:
		return []byte{p.family().number}
	case expr.MetaKeyL4PROTO:
		return []byte{p.Protocol}
	case expr.MetaKeyPROTOCOL:
		if p.Source.Is4() {
			return []byte{unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff}
		}
		return []byte{unix.ETH_P_IPV6 >> 8, unix.ETH_P_IPV6 & 0xff}
	}
	return nil
}

// connection is what connection tracking says of a packet. An opening segment to
// this host is new; of all others it may say anything.
func (p *Passage) connection(key expr.CtKey) []byte {
	if key != expr.CtKeySTATE || p.Out != "" || p.Protocol != unix.IPPROTO_TCP {
		return nil
	}
	return binary.NativeEndian.AppendUint32(nil, expr.CtStateBitNEW)
}

func (p *Passage) family() family {
	if p.Source.Is4() {
		return ipv4
	}
	return ipv6
}

// payload gives bytes of the packet's headers (RFC 791, 8200, 768, 9293); nil: beyond them.
func (p *Passage) payload(base expr.PayloadBase, offset, size uint32) []byte {
	var b []byte
	switch base {
	case expr.PayloadBaseNetworkHeader:
		f := p.family()
		if p.Source.IsUnspecified() && overlap(offset, size, f.source, f.size) ||
			p.Dest.IsUnspecified() && overlap(offset, size, f.destination, f.size) {
			return nil
		}
		b = p.header()
	case expr.PayloadBaseTransportHeader:
		b = binary.BigEndian.AppendUint16(b, p.SrcPort)
		b = binary.BigEndian.AppendUint16(b, p.DstPort)
		if p.Protocol == unix.IPPROTO_TCP {
			b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2) // SYN
		}
	}
	if uint64(offset)+uint64(size) > uint64(len(b)) {
		return nil
	}
	return b[offset : offset+size]
}

func overlap(at, size, other, otherSize uint32) bool {
	return at < other+otherSize && other < at+size
}

func (p *Passage) header() []byte {
	if p.Source.Is4() {
		b := []byte{0x45, 0, 0, 64, 0, 1, 0x40, 0, 64, p.Protocol, 0, 0}
		return append(append(b, p.Source.AsSlice()...), p.Dest.AsSlice()...)
	}
	b := []byte{0x60, 0, 0, 0, 0, 24, p.Protocol, 64}
	return append(append(b, p.Source.AsSlice()...), p.Dest.AsSlice()...)
}
