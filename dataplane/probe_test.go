package dataplane

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
)

func TestKernelThatCannotIsNamed(t *testing.T) {
	lacks := func(name string, err error) feature { return feature{name, func() error { return err }} }
	for _, c := range []struct {
		list []feature
		want string
	}{
		{[]feature{lacks("a", nil)}, ""},
		{[]feature{lacks("a", nil), lacks("bpf_xdp_load_bytes", ebpf.ErrNotSupported), lacks("ring buffers", ebpf.ErrNotSupported)},
			"kernel 5.10.0 is too old: vpnlb needs Linux 6.1 or newer (missing: bpf_xdp_load_bytes, ring buffers)"},
		{[]feature{lacks("a", errors.New("not permitted"))}, "ask kernel 5.10.0 for a: not permitted"},
	} {
		got := ""
		if err := judgeKernel("5.10.0", c.list); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}
