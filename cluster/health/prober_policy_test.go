package health

import (
	"bytes"
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
		if hint := b.Reports()[0].Ports[1].Note.Hint(); !strings.Contains(hint, "RemoteAccess") || !strings.Contains(hint, "aes256gcm16") {
			t.Errorf("hint %q", hint)
		}
		b.set(server1, rejects)
		if d := b.until(1, OpinionUp, 10*time.Second); d < 0 {
			t.Errorf("its policy is back, yet %v", b.opinion(1))
		}
	})
}

// Only a proposal that was chosen proves a policy: under load a server says COOKIE
// before it looks for one, and may say no more. And it proves one for the probe that was answered, at
// the address that answered.
func TestProberPolicyUnproven(t *testing.T) {
	t.Run("cookies alone", func(t *testing.T) {
		probing(t, func(b *bench) {
			b.set(server1, onlyCookies)
			b.until(1, OpinionNeutral, 10*time.Second)
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

func cookie(port uint16, id spi) []byte {
	return reply(id, port == 4500, payloadNotify, notify(notifyCookie, 1, 2, 3)...)
}

func onlyCookies(port uint16, id spi, _ uint16) []byte { return cookie(port, id) }

// cookieFirst asks each question for a cookie; what repeats it gets then.
func cookieFirst(then behaviour) behaviour {
	seen := map[spi]bool{}
	return func(port uint16, id spi, group uint16) []byte {
		if !seen[id] {
			seen[id] = true
			return cookie(port, id)
		}
		return then(port, id, group)
	}
}

// TestProberAnswersCookie: a cookie proves that a host answers, and what comes after
// it whether a policy is loaded.
func TestProberAnswersCookie(t *testing.T) {
	silent := func(uint16, spi, uint16) []byte { return nil }
	for _, c := range []struct {
		name   string
		server behaviour
		fresh  Opinion // of a server that has shown no policy before
		shown  Opinion // of one that has
		note   Note    // then
	}{
		{"a policy", cookieFirst(rejects), OpinionUp, OpinionUp, NoteInvalidKE},
		{"no policy", cookieFirst(neutralises), OpinionNeutral, OpinionDown, NotePolicyGone},
		{"another cookie", onlyCookies, OpinionNeutral, OpinionUp, NoteCookie},
		{"silence", cookieFirst(silent), OpinionNeutral, OpinionUp, NoteCookie},
	} {
		t.Run(c.name, func(t *testing.T) {
			probing(t, func(b *bench) {
				b.set(server1, c.server)
				if d := b.until(1, c.fresh, 10*time.Second); d < 0 {
					t.Errorf("it is %v, want %v", b.opinion(1), c.fresh)
				}
				b.set(server1, rejects)
				b.until(1, OpinionUp, 10*time.Second)
				b.set(server1, c.server)
				time.Sleep(10 * time.Second)
				if got, note := b.opinion(1), b.Reports()[0].Ports[0].Note; got != c.shown || note != c.note {
					t.Errorf("with a policy shown it is %v (%v), want %v (%v)", got, note, c.shown, c.note)
				}
			})
		})
	}
}

// TestProberTriesOffers: a server that reads one transform of a kind, and so finds
// nothing in the first offer, is asked with single combinations until one fits.
func TestProberTriesOffers(t *testing.T) {
	probing(t, func(b *bench) {
		b.setRaw(server1, func(port uint16, request []byte) []byte {
			id := spi(request[:8])
			single, found := true, false
			_ = eachPayload(request[16], request[headerSize:], func(kind byte, body []byte) {
				if kind == payloadSA {
					single = body[7] <= 4 // transforms of the first proposal (RFC 7296, section 3.3.1)
					found = bytes.Contains(body, []byte{0, 0, 0, 8, transformKE, 0, 0, ecp384})
				}
			})
			if single && found {
				return rejects(port, id, 0)
			}
			return neutralises(port, id, 0)
		})
		if d := b.until(1, OpinionUp, 30*time.Second); d < 0 {
			t.Fatalf("still %v", b.opinion(1))
		}
		b.set(server1, neutralises)
		b.until(1, OpinionDown, 10*time.Second)
		b.set(server1, rejects)
		if d := b.until(1, OpinionUp, 10*time.Second); d < 0 {
			t.Errorf("its policy is back, yet %v", b.opinion(1))
		}
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
