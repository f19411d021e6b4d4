package model

import (
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// outbound is a packet of a backend, or an error about one to a backend; not to a VIP.
func outbound(p *packet, from *table.Backend, t *Tables) Decision {
	vip := t.vipByIndex[from.VIP]
	s := p.service(vip, true)
	fate := FateUnknown
	if s.kind == kindLater {
		if t.env.Fragment != nil {
			fate = t.env.Fragment(p.fragmentKey())
		}
		if fate == FateOther {
			s.kind = kindOther
		}
	}
	d := Decision{Slot: from.Slot, Note: p.note(&s)}
	w := way{reason: table.ForwardReturn, vip: vip.Addr, addr: vip.Addr, source: true}
	switch {
	case fate == FateReturn:
		w.reason = table.ForwardReturnFragment
	case s.kind == kindLater:
		w.reason = table.ForwardReturnUnknown
	case s.kind == kindOther:
		q, ok := p.quote()
		if !ok || q.dst != from.Addr || q.class(q.to, vip) == 0 {
			d.Verdict, d.Reason = Pass, table.PassBackendOther
			return d
		}
		w.reason, w.quote = table.ForwardReturnICMPError, &q
	}
	switch {
	case t.notReturn(p.dst):
		d.Verdict, d.Reason = Pass, table.PassNotReturn
		return d
	case s.kind == kindBad:
		return d.end(table.DropMalformed)
	case s.kind == kindForeign:
		return d.end(table.DropNotIKEv2)
	case w.quote == nil:
		learn(&d, p, from, &s, t)
	}
	w.hop = t.toClient(p.dst)
	return forward(d, p, &w, t)
}

// note is what to remember of a first fragment.
func (p *packet) note(s *service) *FragmentNote {
	if !p.more || p.later() || p.broken || s.class == 0 {
		return nil
	}
	switch s.kind {
	case kindOther:
		return &FragmentNote{p.fragmentKey(), FateOther}
	case kindOurs:
		return &FragmentNote{p.fragmentKey(), FateReturn}
	}
	return nil
}
