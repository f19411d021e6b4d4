//go:build long

package dataplane

import (
	"math/rand/v2"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
)

// longFactor is how many times the worlds of TestProgramEqualsModel are tried.
const longFactor = 30

// TestLongProgramEqualsModel is TestProgramEqualsModel with other random frames at each
// run and many more of them. The seed of a failure is in the output.
func TestLongProgramEqualsModel(t *testing.T) {
	b := newBench(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	names := fixture.SetNames()
	for i, name := range names {
		b.worlds(t, rand.New(rand.NewPCG(seed, uint64(i))), name, longFactor*differentialWorlds/len(names))
	}
}
