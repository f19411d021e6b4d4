package health

import (
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// TestProberPolicyGone: what accepted a proposal and accepts none any more has lost
// its policy, as a Windows server whose RemoteAccess service stopped: its IKE
// service goes on answering.
func TestProberPolicyGone(t *testing.T) {
	probing(t, func(b *bench) {
		if d := b.until(1, OpinionUp, 10*time.Second); d < 0 {
			t.Fatalf("still %v", b.opinion(1))
		}
		b.set(server1, neutralises)
		if d := b.until(1, OpinionDown, 5*time.Second); d < 0 {
			t.Fatalf("without a policy it is still %v", b.opinion(1))
		}
		o := b.Observe(nil)
		if s, _ := o.Of(1, state.ClassIKE); s.Note != NotePolicyGone || s.Misses < 3 || s.Neutrals != 0 {
			t.Errorf("observed %+v", s)
		}
		if hint := b.Reports()[0].Ports[1].Note.Hint(); !strings.Contains(hint, "RemoteAccess") || !strings.Contains(hint, "aes256gcm16-prfsha384-ecp384") {
			t.Errorf("hint %q", hint)
		}
		b.set(server1, rejects)
		if d := b.until(1, OpinionUp, 10*time.Second); d < 0 {
			t.Errorf("its policy is back, yet %v", b.opinion(1))
		}
	})
}

// Only a proposal that was chosen proves a policy: under load a server says COOKIE
// before it looks for one. And it proves one for the probe that was answered, at
// the address that answered.
func TestProberPolicyUnproven(t *testing.T) {
	t.Run("cookies alone", func(t *testing.T) {
		probing(t, func(b *bench) {
			b.set(server1, func(port uint16, id spi, _ uint16) []byte {
				return reply(id, port == 4500, payloadNotify, notify(notifyCookie, 1, 2, 3)...)
			})
			b.until(1, OpinionUp, 10*time.Second)
			neutral(t, b)
		})
	})
	t.Run("another probe since", func(t *testing.T) {
		probing(t, func(b *bench) {
			b.until(1, OpinionUp, 10*time.Second)
			b.set(server1, func(port uint16, id spi, g uint16) []byte {
				return reply(id, port == 4500, payloadKE, keyExchange(g)...)
			})
			time.Sleep(time.Second)
			neutral(t, b)
		})
	})
	t.Run("another address", func(t *testing.T) {
		probing(t, func(b *bench) {
			b.until(1, OpinionUp, 10*time.Second)
			b.SetTargets([]Target{{Backend: 1, Addr: server3}}, DefaultTiming())
			b.set(server3, neutralises)
			neutral(t, b)
		})
	})
}

// neutral has the server answer without a policy, which must prove nothing.
func neutral(t *testing.T, b *bench) {
	t.Helper()
	b.set(server1, neutralises)
	if d := b.until(1, OpinionNeutral, 10*time.Second); d < 0 {
		t.Errorf("it is %v", b.opinion(1))
	}
}
