package node

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/node/admin"
)

// serveTrace sends the packets of one client as they pass, a line each, until the
// caller goes away or the count is reached.
func (n *Node) serveTrace(w http.ResponseWriter, r *http.Request) {
	m, err := n.current()
	if err == nil {
		err = m.trace(w, r)
	}
	if err != nil {
		admin.Fail(w, err)
	}
}

func (m *member) trace(w http.ResponseWriter, r *http.Request) error {
	client, err := traceClient(r.FormValue("client"))
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(r.FormValue("count"))
	if err != nil || count < 1 || count > dataplane.MaxTracePackets {
		return refuse("a trace has 1 to %d packets, not %q", dataplane.MaxTracePackets, r.FormValue("count"))
	}
	names := make(map[uint32]string)
	enc, flush := json.NewEncoder(w), http.NewResponseController(w)
	begun := false
	err = m.plane.Trace(r.Context(), client, count, func(t dataplane.Traced) error {
		begun = true
		flush.SetWriteDeadline(time.Now().Add(traceWrite)) // a reader that stands still ends the trace
		if err := enc.Encode(m.traced(t, names)); err != nil {
			return err
		}
		return flush.Flush()
	})
	if begun || r.Context().Err() != nil {
		return nil // the lines are all there is to say
	}
	return err
}

// traceWrite bounds how long one line waits for its reader.
const traceWrite = 10 * time.Second

// traceClient reads an address or a prefix.
func traceClient(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, refuse("a client is an address or a prefix such as 198.51.100.7 or 2001:db8:1:2::/64, not %q", text)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

func (m *member) traced(t dataplane.Traced, names map[uint32]string) admin.Traced {
	name := func(index uint32) string {
		if index == 0 {
			return ""
		}
		if _, ok := names[index]; !ok {
			names[index] = fmt.Sprintf("if%d", index)
			if i, err := net.InterfaceByIndex(int(index)); err == nil {
				names[index] = i.Name
			}
		}
		return names[index]
	}
	out := admin.Traced{At: t.At, In: name(t.Interface), Out: name(t.Out), Bytes: t.Bytes, Reason: t.Reason.String(), Head: t.Head}
	spec := m.spec()
	for i := range spec.Backends {
		if b := &spec.Backends[i]; t.Slot != 0 && uint16(b.Slot) == uint16(t.Slot) {
			out.Backend = b.Name
		}
	}
	return out
}
