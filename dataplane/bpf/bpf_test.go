package bpf

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// maxVerified is how many instructions the verifier may look at, by the first kernel
// release from which it holds: each has a verifier of its own. A kernel refuses a million.
var maxVerified = []struct {
	release string
	count   uint32
}{{"6.12", 500_000}, {"6.1", 900_000}}

// allowed gives the limit of the running kernel.
func allowed(t *testing.T) uint32 {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	for _, m := range maxVerified {
		var fromMajor, fromMinor int
		fmt.Sscanf(m.release, "%d.%d", &fromMajor, &fromMinor)
		if major > fromMajor || major == fromMajor && minor >= fromMinor {
			return m.count
		}
	}
	t.Fatalf("kernel %d.%d is older than those that are supported", major, minor)
	return 0
}

func TestProgramsLoad(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("loading programs needs root")
	}
	spec, err := LoadPlane()
	if err != nil {
		t.Fatal(err)
	}
	delete(spec.Programs, "vpnlb_bench") // never loaded on a node
	delete(spec.Maps, "bench_plans")
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		var ve *ebpf.VerifierError
		if errors.As(err, &ve) {
			n := len(ve.Log)
			t.Fatalf("%v\n%v", err, ve.Log[max(0, n-60):])
		}
		t.Fatal(err)
	}
	defer coll.Close()
	for name, p := range coll.Programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, _ := info.VerifiedInstructions() // a kernel before Linux 5.16 does not say
		t.Logf("%s: %d instructions verified", name, n)
		if limit := allowed(t); n > limit {
			t.Errorf("%s: more than %d instructions to verify; kernels refuse a million", name, limit)
		}
	}
	clock, err := LoadClock()
	if err != nil {
		t.Fatal(err)
	}
	c, err := ebpf.NewCollection(clock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, p := range c.Programs {
		r, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 14)})
		t.Log(name, r, err)
	}
}
