package bpf

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf"
)

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
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
	if err != nil {
		var ve *ebpf.VerifierError
		if errors.As(err, &ve) {
			n := len(ve.Log)
			t.Fatalf("%v\n%v", err, ve.Log[max(0, n-60):])
		}
		t.Fatal(err)
	}
	defer coll.Close()
	t.Log(coll.Programs["vpnlb"].VerifierLog)
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
