// Package hopbench holds the two ends of the hop benchmark, as BPF programs: a
// generator of live frames and a sink. Only the benchmark of package dataplane uses
// it.
package hopbench

//go:generate go tool bpf2go -cc clang-14 -target amd64,arm64 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter" -type hop_plan Hop bpf/hop.bpf.c
