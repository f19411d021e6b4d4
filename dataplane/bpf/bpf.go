// Package bpf holds the XDP program: its C sources and the objects compiled from
// them, as Go values. Only package dataplane uses it.
//
// The objects are committed, so that building vpnlb needs no clang. go generate
// reproduces them with clang 14 and libbpf's headers.
package bpf

//go:generate go run ./reasons reasons.h
//go:generate go tool bpf2go -cc clang-14 -target amd64,arm64 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter" -type control -type meta -type rules -type vip -type backend -type server_bucket -type maglev_chunk -type affinity4_key -type affinity -type pending_key -type pending -type not_return_key -type interface -type count -type return_count -type events -type next_hop -type fragment_key Plane vpnlb.bpf.c
//go:generate go tool bpf2go -cc clang-14 -target amd64,arm64 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter" Clock clock.bpf.c
