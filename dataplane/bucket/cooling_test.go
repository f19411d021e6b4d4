package bucket

import (
	"math/rand/v2"
	"testing"
)

// inverse of an odd multiplier modulo 2^64.
func inverse(m uint64) uint64 {
	x := m
	for range 6 {
		x *= 2 - m*x
	}
	return x
}

func unshift(x uint64, by uint) uint64 {
	out := x
	for range 64 / by {
		out = x ^ out>>by
	}
	return out
}

// sameTag gives the state before finish of another hash with the same tag.
func sameTag(x uint64) uint64 {
	x = (x*mix1 ^ 1) * inverse(mix1)
	x = unshift(x, 31)
	x *= inverse(mix2)
	x = unshift(x, 27)
	x *= inverse(mix1)
	return unshift(x, 30)
}

// Keys that a reader could mix up never follow each other in a way.
func TestConfusable(t *testing.T) {
	tab := &Table{family: IPv6, n: 2, seed: testSeed}
	rng := rand.New(rand.NewPCG(1, 2))
	half := func(hi uint64) uint64 {
		x := hi ^ testSeed
		return (x ^ x>>30) * mix1
	}
	for range 1000 {
		hi, lo, newHi, newLo := rng.Uint64(), rng.Uint64(), rng.Uint64(), rng.Uint64()
		state := sameTag(hash6(hi, lo, testSeed))
		sameLo := state ^ half(newHi)                                       // (newHi, sameLo) has the tag of (hi, lo)
		mixedLo := state ^ half(hi)                                         // (hi, mixedLo) has it
		mixedHi := unshift((state^lo)*inverse(mix1), 30) ^ uint64(testSeed) // (mixedHi, lo) has it
		for _, c := range []struct {
			name   string
			hi, lo uint64
			want   bool
		}{
			{"another key", newHi, newLo, false},
			{"the same first half", hi, newLo, false},
			{"the same second half", newHi, lo, false},
			{"the same tag", newHi, sameLo, true},
			{"old first half, new second", newHi, mixedLo, true},
			{"new first half, old second", mixedHi, newLo, true},
			{"the same tag and first half", hi, mixedLo, true},
		} {
			if got := tab.confusable(hi, lo, c.hi, c.lo); got != c.want {
				t.Fatalf("%s: %v", c.name, got)
			}
		}
	}
}

// A way whose old key could be taken for the new one is left out.
func TestConfusableWayIsNotUsed(t *testing.T) {
	b := newBed(t, IPv6, 2, 0)
	k := client(IPv6, 1)
	s, _ := b.spotOf(k)
	old := hash6(s.hi, s.lo, testSeed)
	x := uint64(0x77) ^ testSeed
	lo := sameTag(old) ^ (x^x>>30)*mix1
	at := int(s.first) * stride6
	b.words[keyIndex(at)], b.words[keyIndex(at)+1] = 0x77, lo
	if err := b.Put(entry(k, 1)); err != nil {
		t.Fatal(err)
	}
	if b.words[at] != 0 || b.words[at+1] == 0 {
		t.Errorf("words %#x, %#x", b.words[at], b.words[at+1])
	}
}
