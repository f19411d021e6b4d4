package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
)

// Times and bounds of the questions about strangers. Raft and the contacts call
// again a few times a second, so a refusal that is not true any more costs
// little; a stranger's certificate is signed by the CA, so only somebody who
// was a member once can ask for much.
const (
	strangerPatience = time.Second            // for the answers to one question
	strangerBelieved = 30 * time.Second       // how long a yes counts; asked again from the half on
	strangerRefused  = 2 * time.Second        // how long a no counts
	strangerPause    = 100 * time.Millisecond // of one asker between two questions
	strangerAskers   = 4
	strangersKept    = 64
)

// stranger is a node that shows a certificate of this cluster and is not in
// the member list that this node has.
type stranger struct {
	id  state.NodeID
	key [ed25519.PublicKeySize]byte
}

// strangers remembers what the members said of them. It answers at once; the
// questions are asked by runStrangers.
type strangers struct {
	questions chan stranger
	answered  *prometheus.CounterVec // answer

	mu     sync.Mutex
	found  map[stranger]finding
	asking map[stranger]bool
}

// finding is the outcome of one question.
type finding struct {
	err   error // nil: a member
	alone bool  // nobody could say
	until time.Time
}

func newStrangers(reg prometheus.Registerer) (*strangers, error) {
	s := &strangers{
		questions: make(chan stranger, strangerAskers),
		answered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vpnlb_node_strangers_total",
			Help: "Nodes with a certificate that are not in this node's member list, by what the members said; busy: not asked.",
		}, []string{"answer"}),
		found:  make(map[stranger]finding),
		asking: make(map[stranger]bool),
	}
	if err := reg.Register(s.answered); err != nil {
		return nil, fmt.Errorf("register metrics of strangers: %w", err)
	}
	return s, nil
}

// judge is authorize for a stranger: what is known of it now. Never blocks.
func (s *strangers) judge(id state.NodeID, key []byte) error {
	if len(key) != ed25519.PublicKeySize {
		return fmt.Errorf("node %s shows no key of this cluster", id)
	}
	who := stranger{id: id, key: [ed25519.PublicKeySize]byte(key)}
	s.mu.Lock()
	defer s.mu.Unlock()
	f, known := s.found[who]
	left := time.Until(f.until)
	known = known && left > 0
	if (!known || f.err == nil && left < strangerBelieved/2) && !s.asking[who] {
		select {
		case s.questions <- who:
			s.asking[who] = true
		default:
			s.answered.WithLabelValues("busy").Inc()
		}
	}
	if known {
		return f.err
	}
	return fmt.Errorf("node %s is not in the member list that this node has; the members in it are being asked", id)
}

// note keeps the outcome of a question.
func (s *strangers) note(who stranger, f finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.asking, who)
	if _, ok := s.found[who]; !ok && len(s.found) >= strangersKept {
		s.forgetOne()
	}
	s.found[who] = f
}

// forgetOne makes room: of a refused one rather than of a member, of the oldest.
func (s *strangers) forgetOne() {
	var out stranger
	var worst finding
	first := true
	for who, f := range s.found {
		sooner := f.until.Before(worst.until)
		if first || (f.err != nil) != (worst.err != nil) && f.err != nil || (f.err != nil) == (worst.err != nil) && sooner {
			out, worst, first = who, f, false
		}
	}
	delete(s.found, out)
}

// unanswered names a stranger that calls while no member can say who it is.
func (s *strangers) unanswered() (state.NodeID, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for who, f := range s.found {
		if f.alone && time.Since(f.until) < 10*time.Second {
			return who.id, true
		}
	}
	return state.NodeID{}, false
}

// answers counts what the members in this node's list said to one question.
type answers struct {
	asked, yes, no int
	old            int // of a version that does not know the question
}

// judge is pure. The majority of those who answer decides, and a tie is a no: a
// node that was removed, and is in this node's list still because that is
// behind, must not be able to vouch against the others. Where it is the only
// one that answers its word counts: this node believes it as much under its
// own name, until it has caught up. behind: this node has not caught up.
func (a answers) judge(behind bool) (f finding, label string) {
	switch {
	case a.yes > a.no:
		return finding{}, "member"
	case a.yes+a.no > 0:
		return finding{err: fmt.Errorf("it is no member, say %d of %d members that answer", a.no, a.yes+a.no)}, "stranger"
	case a.old > 0 && behind:
		// The whole cluster runs an older version, and believes the CA alone
		// until it has caught up: so does this node among them.
		return finding{}, "old"
	}
	if a.asked == 0 {
		return finding{err: errors.New("it is not in the member list, which has nobody else to ask")}, "stranger"
	}
	return finding{err: fmt.Errorf("it is not in the member list that this node has, and none of the %d members in it can say who it is", a.asked), alone: true}, "alone"
}

type vouchRequest struct {
	Node state.NodeID `json:"node"`
	Key  []byte       `json:"key"`
}

type vouchAnswer struct {
	Member bool `json:"member"`
}

// vouch answers another member's question. That somebody is in a committed list
// can be said at any time; that he is not, only when the list is the present one.
func (m *member) vouch(in vouchRequest) (vouchAnswer, error) {
	listed := slices.ContainsFunc(m.newestMembers(m.view()), func(o state.Member) bool {
		return o.ID == in.Node && bytes.Equal(o.PublicKey, in.Key)
	})
	if !listed && (!m.caughtUp.Load() || m.quorumLost() > 0) {
		return vouchAnswer{}, &transport.StatusError{Code: http.StatusServiceUnavailable, Reason: "this node may be behind itself"}
	}
	return vouchAnswer{Member: listed}, nil
}

// runStrangers asks the questions.
func (m *member) runStrangers(ctx context.Context) error {
	var askers sync.WaitGroup
	for range strangerAskers {
		askers.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case who := <-m.strangers.questions:
					m.askAbout(ctx, who)
				}
				if !pause(ctx, strangerPause) {
					return
				}
			}
		})
	}
	askers.Wait()
	return nil
}

// askAbout asks all members that this node knows, by their keys: one may have
// another ID meanwhile.
func (m *member) askAbout(ctx context.Context, who stranger) {
	ctx, cancel := context.WithTimeout(ctx, strangerPatience)
	defer cancel()
	var a answers
	said := make(chan error)
	for _, o := range m.newestMembers(m.view()) {
		if o.ID == m.self || len(o.PublicKey) == 0 {
			continue
		}
		a.asked++
		go func() {
			var out vouchAnswer
			err := m.transport.Call(ctx, transport.Target{Addr: o.Cluster, Key: o.PublicKey}, pathVouch, vouchRequest{Node: who.id, Key: who.key[:]}, &out)
			if err == nil && !out.Member {
				err = errNoMember
			}
			said <- err
		}()
	}
	for range a.asked {
		var refused *transport.StatusError
		switch err := <-said; {
		case err == nil:
			a.yes++
		case errors.Is(err, errNoMember):
			a.no++
		case errors.As(err, &refused) && refused.Code == http.StatusNotFound:
			a.old++
		default:
			m.checkRemoved(err)
		}
	}
	f, label := a.judge(!m.caughtUp.Load())
	f.until = time.Now().Add(strangerBelieved)
	if f.err != nil {
		f.err = fmt.Errorf("node %s is refused: %w", who.id, f.err)
		f.until = time.Now().Add(strangerRefused)
	}
	m.strangers.answered.WithLabelValues(label).Inc()
	m.log.Debug("asked about a node that is not in the member list", "stranger", who.id.String(), "members", a.asked, "yes", a.yes, "no", a.no, "answer", label)
	m.strangers.note(who, f)
}

var errNoMember = errors.New("no member")
