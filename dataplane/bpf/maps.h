/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps. Who writes each is said beside it; DESIGN.md has the table. */
#pragma once
#include "structs.h"
#include "reasons.h"
#include <bpf/bpf_helpers.h>

#define ARRAY(name, type_, value_, n)                                        \
	struct {                                                             \
		__uint(type, type_);                                         \
		__type(key, __u32);                                          \
		__type(value, value_);                                       \
		__uint(max_entries, n);                                      \
	} name SEC(".maps")

/* User space, by single-word stores; the program adds to pending_serial. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct control);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
} plane_control SEC(".maps");

/* User space. Not read by the program. */
ARRAY(plane_meta, BPF_MAP_TYPE_ARRAY, struct meta, 1);

/* User space, always the half that control.selector does not name. */
ARRAY(plane_rules, BPF_MAP_TYPE_ARRAY, struct rules, 2);
ARRAY(backends, BPF_MAP_TYPE_ARRAY, struct backend, 2 * SLOTS);
ARRAY(servers, BPF_MAP_TYPE_ARRAY, struct server_bucket, 2 * SERVER_BUCKETS);
ARRAY(maglev, BPF_MAP_TYPE_ARRAY, struct maglev_chunk, 2 * POOLS * CHUNKS);
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct not_return_key);
	__type(value, __u32);
	__uint(max_entries, MAX_NOT_RETURN);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} not_return SEC(".maps");

/* User space writes entries, the program stores the ticks into them. Not an
 * LRU: an eviction would be a silent change of server. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct affinity4_key);
	__type(value, struct affinity);
	__uint(max_entries, MAX_CLIENTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} affinity4 SEC(".maps");

/* Proofs without an answer. The program inserts and raises, user space deletes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct pending_key);
	__type(value, struct pending);
	__uint(max_entries, MAX_PENDING);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} pending_proofs SEC(".maps");

/* User space: proofs that the program keeps to itself for a while. Apart from
 * pending_proofs, so that refusals in plenty leave room for what counts; an
 * eviction only ends a silence early. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct pending_key);
	__type(value, struct pending);
	__uint(max_entries, MAX_SILENCES);
} silences SEC(".maps");

/* User space: what netlink says of each interface, by ifindex modulo. */
ARRAY(interfaces, BPF_MAP_TYPE_ARRAY, struct interface, INTERFACES);

/* The program. */
ARRAY(counters, BPF_MAP_TYPE_PERCPU_ARRAY, struct count, REASON_COUNT);
ARRAY(returns, BPF_MAP_TYPE_PERCPU_ARRAY, struct return_count, SLOTS);
ARRAY(event_counters, BPF_MAP_TYPE_PERCPU_ARRAY, struct events, 1);
ARRAY(next_hop_by_slot, BPF_MAP_TYPE_PERCPU_ARRAY, struct next_hop, SLOTS);
ARRAY(next_hop_by_client, BPF_MAP_TYPE_PERCPU_ARRAY, struct next_hop, NEXT_HOPS_BY_CLIENT);
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct fragment_key);
	__type(value, __u32);
	__uint(max_entries, MAX_FRAGMENTS);
} fragments SEC(".maps");
