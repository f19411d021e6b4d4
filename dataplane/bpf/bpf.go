// Package bpf holds the XDP program: its C sources and the objects compiled from
// them, as Go values. Only package dataplane uses it.
//
// The objects are committed, so that building vpnlb needs no clang. go generate
// reproduces them with clang 14 and libbpf's headers.
package bpf

//go:generate go run ./reasons reasons.h
//go:generate go tool bpf2go -cc clang-14 -target amd64,arm64 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter" -type control -type meta -type rules -type vip -type vip6 -type backend -type backend6 -type server_bucket -type server6_bucket -type maglev_chunk -type bucket4 -type bucket6 -type client_key -type pending -type spis -type sa_client -type not_return_key -type not_return6_key -type places -type interface -type vlan_key -type count -type events -type next_hop -type slot_state -type fragment_key -type fragment6_key -type allowance -type trace_filter -type trace_event -type bench_plan -type in6 Plane vpnlb.bpf.c
//go:generate go tool bpf2go -cc clang-14 -target amd64,arm64 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter" Clock clock.bpf.c
