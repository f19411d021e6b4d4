package node

import (
	"crypto/ed25519"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/cluster/state"
)

func TestAnswersAboutAStranger(t *testing.T) {
	for _, c := range []struct {
		name   string
		in     answers
		behind bool
		member bool
		alone  bool
	}{
		{name: "all say yes", in: answers{asked: 2, yes: 2}, member: true},
		{name: "the only one that answers says yes", in: answers{asked: 2, yes: 1}, member: true},
		{name: "one liar against one", in: answers{asked: 2, yes: 1, no: 1}, behind: true},
		{name: "one liar against two", in: answers{asked: 3, yes: 1, no: 2}, behind: true},
		{name: "two against one that lags", in: answers{asked: 3, yes: 2, no: 1}, member: true},
		{name: "all say no", in: answers{asked: 2, no: 2}},
		{name: "nobody answers", in: answers{asked: 2}, behind: true, alone: true},
		{name: "nobody to ask", in: answers{}, behind: true},
		{name: "older versions, while behind", in: answers{asked: 2, old: 1}, behind: true, member: true},
		{name: "older versions, caught up", in: answers{asked: 2, old: 2}, alone: true},
		{name: "an older version and a no", in: answers{asked: 2, old: 1, no: 1}, behind: true},
	} {
		if f, _ := c.in.judge(c.behind); (f.err == nil) != c.member || f.alone != c.alone {
			t.Errorf("%s: %+v", c.name, f)
		}
	}
}

func TestStrangersAreAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := newStrangers(prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		id, key := state.NodeID{1}, make([]byte, ed25519.PublicKeySize)
		asked := func() int {
			n := len(s.questions)
			for range n {
				<-s.questions
			}
			return n
		}
		if s.judge(id, key[:31]) == nil || asked() != 0 {
			t.Error("half a key is judged")
		}
		for range 10 {
			if s.judge(id, key) == nil {
				t.Fatal("let in before anybody was asked")
			}
		}
		if n := asked(); n != 1 {
			t.Fatalf("%d questions about one stranger", n)
		}
		who := stranger{id: id}
		s.note(who, finding{until: time.Now().Add(strangerBelieved)})
		other := make([]byte, ed25519.PublicKeySize)
		other[0] = 1
		if s.judge(id, key) != nil || asked() != 0 {
			t.Error("a member by the others' word is refused, or asked about again at once")
		}
		if s.judge(id, other) == nil || asked() != 1 {
			t.Error("another key under this ID is let in, or not asked about")
		}
		time.Sleep(strangerBelieved/2 + time.Second)
		if s.judge(id, key) != nil || asked() != 1 {
			t.Error("not asked again in time")
		}
		time.Sleep(strangerBelieved / 2)
		if s.judge(id, key) == nil {
			t.Error("believed for ever")
		}
		refused := errors.New("no member")
		s.note(who, finding{err: refused, alone: true, until: time.Now().Add(strangerRefused)})
		if err := s.judge(id, key); err != refused || asked() != 0 {
			t.Errorf("a refusal does not hold: %v", err)
		}
		if got, ok := s.unanswered(); !ok || got != id {
			t.Error("status is silent about a stranger whom nobody knows")
		}
		time.Sleep(strangerRefused + 20*time.Second)
		if _, ok := s.unanswered(); ok {
			t.Error("status names a stranger of long ago")
		}
		if s.judge(id, key) == nil || asked() != 1 {
			t.Error("a refusal holds for ever")
		}
	})
}

// Somebody with the CA's key draws as many IDs as he likes.
func TestStrangersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := newStrangers(prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		key := make([]byte, ed25519.PublicKeySize)
		member := stranger{id: state.NodeID{9, 9}}
		s.note(member, finding{until: time.Now().Add(strangerBelieved)})
		for i := range 1000 {
			id := state.NodeID{1, byte(i), byte(i >> 8)}
			if s.judge(id, key) == nil {
				t.Fatal("let in")
			}
			if len(s.asking) > 2*strangerAskers || len(s.found) > strangersKept {
				t.Fatalf("%d questions under way, %d findings", len(s.asking), len(s.found))
			}
			if i%2 == 0 { // an asker is done
				who := <-s.questions
				s.note(who, finding{err: errNoMember, until: time.Now().Add(strangerRefused)})
			}
		}
		if len(s.found) != strangersKept {
			t.Errorf("%d findings", len(s.found))
		}
		if s.judge(member.id, key) != nil {
			t.Error("the flood pushed a member out")
		}
	})
}

func TestMemberListOfTheAdmission(t *testing.T) {
	tw := newTown(t, t.TempDir())
	v := tw.node(1)
	self := v.ids.Load().Identity().Node
	if l := v.readMemberList(self); l != nil {
		t.Errorf("before any admission: %+v", l)
	}
	in := joinAnswer{Secret: make([]byte, 32), Index: 7, Members: []knownPeer{{ID: state.NodeID{1}, Addr: "192.0.2.1:7950", Key: []byte{1}}}}
	if err := v.adopt(self, in); err == nil {
		t.Error("a certificate that is none was adopted")
	}
	l := v.readMemberList(self)
	if l == nil || l.Index != 7 || len(l.Members) != 1 || l.Members[0].Cluster != "192.0.2.1:7950" {
		t.Errorf("%+v", l)
	}
	if l := v.readMemberList(state.NodeID{2}); l != nil {
		t.Errorf("under another ID: %+v", l)
	}
	if err := os.WriteFile(v.membersPath(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l := v.readMemberList(self); l != nil || !strings.Contains(strings.Join(v.fileNotes(), "\n"), v.membersPath()) {
		t.Errorf("half a file: %+v, notes %q", l, v.fileNotes())
	}
}
