package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
)

// Modes of the bench entry, as in bpf/bench.h.
const (
	modeProgram = 0
	modeEntry   = 1
	modeLoop    = 2
)

// benchFrameBytes is the size of every frame: a small ESP packet.
const benchFrameBytes = 128

// benchFrame builds a frame for the bed's leg: the layers behind the Ethernet header,
// padded by the last one's fill.
func benchFrame(t testing.TB, format string, args ...any) []byte {
	t.Helper()
	f, err := fixture.Build("eth router > outside | " + fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	copy(f, bedMAC[:])
	return f
}

// benchLayer names the IP layer of a family.
func benchLayer(family int) string {
	if family == 4 {
		return "ip"
	}
	return "ip6"
}

// espFrame is ESP in UDP, the bulk of the traffic, with a UDP checksum.
func espFrame(t testing.TB, family int, from, to netip.Addr) []byte {
	size := benchFrameBytes - 14 - 20 - 8
	if family == 6 {
		size -= 20
	}
	return benchFrame(t, "%s %s > %s | udp 4500 > 4500 | esp size=%d", benchLayer(family), from, to, size)
}

// laterFragment is a piece without ports.
func laterFragment(t testing.TB, family int, from, to netip.Addr) []byte {
	if family == 4 {
		return benchFrame(t, "ip %s > %s frag=64 proto=udp | fill %d", from, to, benchFrameBytes-34)
	}
	return benchFrame(t, "ip6 %s > %s | fragment 64 next=udp | fill %d", from, to, benchFrameBytes-62)
}

// Where the client's four bytes are that the bench entry counts up: the whole IPv4
// address, the second word of an IPv6 one.
const (
	sourceAt4, destinationAt4 = 26, 30
	sourceAt6, destinationAt6 = 26, 42
)

func clientAt(family int, reply bool) int {
	switch {
	case family == 4 && reply:
		return destinationAt4
	case family == 4:
		return sourceAt4
	case reply:
		return destinationAt6
	}
	return sourceAt6
}

// benchPlan tells the bench entry of a frame: at is where its clients are counted up
// from first.
func benchPlan(frame []byte, mode uint32, at int, first, clients, seed uint32) bpf.PlaneBenchPlan {
	p := bpf.PlaneBenchPlan{Clients: clients, First: first, Mode: mode, Seed: seed | 1}
	f := append([]byte(nil), frame...)
	if at != 0 {
		clear(f[at : at+4])
		p.Pick[(at-22)/8] = 0xffffffff << ((at - 22) % 8 * 8)
	}
	p.Start = uint64(binary.NativeEndian.Uint32(f)) | uint64(binary.NativeEndian.Uint16(f[4:]))<<32
	for i := range p.Head {
		p.Head[i] = binary.NativeEndian.Uint64(f[6+8*i:])
	}
	return p
}
