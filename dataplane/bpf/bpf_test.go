package bpf

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf"
)

// maxVerified leaves room below the kernel's limit of a million, on every kernel that is
// supported: each has a verifier of its own.
const maxVerified = 900_000

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
		if n > maxVerified {
			t.Errorf("%s: more than %d instructions to verify; kernels refuse a million", name, maxVerified)
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
