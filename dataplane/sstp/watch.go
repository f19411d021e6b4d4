package sstp

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/sstp/control"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// saw acts on what a session's follower noticed.
func (s *Server) saw(c *session, events control.Events) {
	if events&control.Lost != 0 {
		s.metrics.calls.WithLabelValues("unreadable").Inc()
		s.log.Debug("stream is no sstp, it is relayed unread", "session", c.id, "target", c.target.Name)
	}
	if events&control.Refused != 0 {
		s.metrics.calls.WithLabelValues("refused").Inc()
	}
	if events&control.Echoed != 0 {
		s.metrics.calls.WithLabelValues("echoed").Inc()
	}
	if events&control.Acknowledged != 0 {
		s.metrics.calls.WithLabelValues("acknowledged").Inc()
		s.tell(c, table.EarnedAuth, true)
	}
	if events&control.CallUp != 0 {
		s.metrics.calls.WithLabelValues("connected").Inc()
	}
	if events&control.ServerData != 0 {
		c.heard.Store(true)
	}
	if events&(control.CallAborted|control.CallEnded) != 0 {
		s.callEnded(c)
	}
}

// tell reports evidence for the client's record.
func (s *Server) tell(c *session, level table.Confirmation, opening bool) {
	s.deps.Evidence(table.Evidence{Key: table.Key{Client: c.key, Class: table.TCP}, Slot: c.target.Slot, Saw: c.route.Saw, Level: level, Opening: opening})
}

func (s *Server) callEnded(c *session) {
	call := c.follow.Call()
	word := "disconnected"
	if call.State == control.Aborted {
		word = "aborted"
	}
	s.metrics.calls.WithLabelValues(word + "_by_" + call.By.String()).Inc()
	s.log.Debug("sstp call "+word, "session", c.id, "target", c.target.Name, "by", call.By.String(), "status", call.Status.String(),
		"after_up", call.AbortedUp)
	if call.AbortedUp && call.By == control.Server && !c.proven.Load() { // else it had taken the hash
		s.alarms.abortedUp(c.target, call.HasHash && Hash(call.Hash) == c.target.cert.hash, false)
	}
}

// dropped: the server went first, without a word. Soon after Call Connected that
// may be its way to refuse a hash.
func (c *session) dropped() {
	call := c.follow.Call()
	if call.Off || call.State != control.Up || c.proven.Load() || c.left.Swap(true) {
		return
	}
	s := c.server
	s.metrics.calls.WithLabelValues("dropped_by_server").Inc()
	s.log.Debug("sstp call dropped by server", "session", c.id, "target", c.target.Name)
	s.alarms.abortedUp(c.target, call.HasHash && Hash(call.Hash) == c.target.cert.hash, true)
}

// stayUp is how many ticks a call must stay up to prove that its server took
// Call Connected: the server answers at once, or after its negotiation timer.
const stayUp = 10

// Aborts that make an alarm: one, if no call to that server has stood within
// quietTicks; else this many in a row. Anyone can make a server abort before
// logging in: on a server with working calls a few such must not cry wolf. Calls
// that merely stand do not break the row: they say nothing of a hash that was
// set since.
const (
	abortsInARow = 3
	quietTicks   = 60
)

// alarmTicks is how long an alarm, and a row of aborts, outlives its last cause:
// when the fault is mended, the calls that would show it may go by other nodes.
const alarmTicks = 15 * 60

// alarms judges servers by what their calls came to.
type alarms struct {
	log  *slog.Logger
	tick *atomic.Int64
	mu   sync.Mutex
	by   map[table.Slot]*record // of targets in the plan alone
}

type record struct {
	name    string
	aborts  int   // after Call Connected, in a row
	foreign int   // of them, with another hash than that of the certificate shown
	silent  int   // of them, without an abort: the connection just ended
	abort   int64 // tick of the last
	good    int64 // tick at which a call that its server took stood last; 0: none yet
	texts   [alarmKinds]string
	since   [alarmKinds]time.Time
	seen    [alarmKinds]int64 // tick of the last cause
}

const (
	alarmAborts = iota
	alarmCertificate
	alarmKinds
)

func (a *alarms) init(log *slog.Logger, tick *atomic.Int64) {
	a.log, a.tick, a.by = log, tick, map[table.Slot]*record{}
}

// keep forgets servers that are no more, or that are others now.
func (a *alarms) keep(targets map[table.Slot]*target) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for slot, r := range a.by {
		if t := targets[slot]; t == nil || t.Name != r.name {
			delete(a.by, slot)
		}
	}
}

func (a *alarms) of(t *target) *record {
	r := a.by[t.Slot]
	if r == nil || r.name != t.Name {
		r = &record{name: t.Name}
		a.by[t.Slot] = r
	}
	return r
}

func (a *alarms) raise(r *record, kind int, text string) {
	if r.texts[kind] == "" {
		r.since[kind] = time.Now()
		a.log.Error("sstp alarm", "target", r.name, "alarm", text)
	}
	r.texts[kind], r.seen[kind] = text, a.tick.Load()
}

func (a *alarms) clear(r *record, kind int) {
	if r.texts[kind] != "" {
		a.log.Info("sstp alarm is over", "target", r.name, "alarm", r.texts[kind])
		r.texts[kind] = ""
	}
}

// abortedUp: the server aborted a call after Call Connected, or, if silent, just
// closed the connection. same: the client had seen the certificate that was
// shown here.
func (a *alarms) abortedUp(t *target, same, silent bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.of(t)
	r.aborts++
	r.abort = a.tick.Load()
	if !same {
		r.foreign++
	}
	if silent {
		r.silent++
	}
	works := r.good != 0 && r.abort-r.good < quietTicks
	if r.aborts < abortsInARow && (works || r.silent == r.aborts) { // a server that restarts closes, too
		return
	}
	switch r.aborts {
	case r.foreign:
		a.raise(r, alarmAborts, fmt.Sprintf("server %s aborts after Call Connected, and its clients saw another certificate than the one shown here: "+
			"something between them and this node opens TLS, or the clients are faulty", t.Name))
	case r.silent:
		a.raise(r, alarmAborts, fmt.Sprintf("server %s closes connections right after Call Connected: its configured certificate hash may not match, "+
			"or it keeps restarting; run 'vpnlb sstp rras %s'", t.Name, t.Name))
	default:
		a.raise(r, alarmAborts, fmt.Sprintf("server %s aborts after Call Connected: its configured certificate hash does not match; run 'vpnlb sstp rras %s'", t.Name, t.Name))
	}
}

// stayedUp: a new call did.
func (a *alarms) stayedUp(t *target) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.of(t)
	r.aborts, r.foreign, r.silent, r.good = 0, 0, 0, a.tick.Load()
	a.clear(r, alarmAborts)
}

// look takes which servers have calls that stand and that they took, and ends
// what has had no cause for long.
func (a *alarms) look(standing map[*target]bool) {
	tick := a.tick.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	for t := range standing {
		if r := a.by[t.Slot]; r != nil && r.name == t.Name {
			r.good = tick
		}
	}
	for _, r := range a.by {
		if r.aborts > 0 && tick-r.abort >= alarmTicks {
			r.aborts, r.foreign, r.silent = 0, 0, 0
		}
		for kind, text := range r.texts {
			if text != "" && tick-r.seen[kind] >= alarmTicks {
				a.clear(r, kind)
			}
		}
	}
}

func (a *alarms) otherCertificate(t *target, want *certificate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.raise(a.of(t), alarmCertificate, fmt.Sprintf("server %s shows another certificate than its clients see here (%s): "+
		"re-encryption needs the same one on both; run 'vpnlb sstp rras %s'", t.Name, want.name, t.Name))
}

func (a *alarms) rightCertificate(t *target) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.by[t.Slot]; r != nil {
		a.clear(r, alarmCertificate)
	}
}

// list gives the alarms that stand, by name of the server.
func (a *alarms) list() []Alarm {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Alarm
	for slot, r := range a.by {
		for kind, text := range r.texts {
			if text != "" {
				out = append(out, Alarm{Target: r.name, Slot: slot, Text: text, Since: r.since[kind]})
			}
		}
	}
	slices.SortFunc(out, func(a, b Alarm) int {
		if c := strings.Compare(a.Target, b.Target); c != 0 {
			return c
		}
		return strings.Compare(a.Text, b.Text)
	})
	return out
}
