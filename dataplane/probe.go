package dataplane

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// A feature is one that attaching needs; ask fails with ebpf.ErrNotSupported where the
// kernel lacks it.
type feature struct {
	name string
	ask  func() error
}

func helper(name string, fn asm.BuiltinFunc) feature {
	return feature{name, func() error { return features.HaveProgramHelper(ebpf.XDP, fn) }}
}

func mapType(name string, t ebpf.MapType) feature {
	return feature{name, func() error { return features.HaveMapType(t) }}
}

var needs = []feature{
	{"XDP programs", func() error { return features.HaveProgramType(ebpf.XDP) }},
	helper("bpf_fib_lookup", asm.FnFibLookup),
	helper("bpf_jiffies64", asm.FnJiffies64),
	helper("bpf_redirect", asm.FnRedirect),
	helper("bpf_csum_diff", asm.FnCsumDiff),
	helper("bpf_xdp_adjust_head", asm.FnXdpAdjustHead),
	helper("bpf_xdp_adjust_tail", asm.FnXdpAdjustTail),
	helper("bpf_xdp_load_bytes", asm.FnXdpLoadBytes),
	helper("bpf_xdp_store_bytes", asm.FnXdpStoreBytes),
	helper("bpf_xdp_get_buff_len", asm.FnXdpGetBuffLen),
	helper("bpf_ringbuf_reserve", asm.FnRingbufReserve),
	mapType("LPM trie maps", ebpf.LPMTrie),
	mapType("LRU hash maps", ebpf.LRUHash),
	mapType("per-CPU array maps", ebpf.PerCPUArray),
	mapType("ring buffers", ebpf.RingBuf),
}

// probe says in one sentence why this kernel cannot carry the program, or why it could
// not be asked.
func probe() error {
	release := "of unknown version"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	return judgeKernel(release, needs)
}

func judgeKernel(release string, list []feature) error {
	var missing []string
	var failed error
	for _, f := range list {
		switch err := f.ask(); {
		case err == nil:
		case errors.Is(err, ebpf.ErrNotSupported):
			missing = append(missing, f.name)
		case failed == nil:
			failed = fmt.Errorf("ask kernel %s for %s: %w", release, f.name, err)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("kernel %s is too old: vpnlb needs Linux 6.1 or newer (missing: %s)", release, strings.Join(missing, ", "))
	}
	return failed
}
