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

#define MMAP_ARRAY(name, value_, n)                                          \
	struct {                                                             \
		__uint(type, BPF_MAP_TYPE_ARRAY);                            \
		__type(key, __u32);                                          \
		__type(value, value_);                                       \
		__uint(max_entries, n);                                      \
		__uint(map_flags, BPF_F_MMAPABLE);                           \
	} name SEC(".maps")

#define TABLE(name, type_, key_, value_, n, flags)                           \
	struct {                                                             \
		__uint(type, type_);                                         \
		__type(key, key_);                                           \
		__type(value, value_);                                       \
		__uint(max_entries, n);                                      \
		__uint(map_flags, flags);                                    \
	} name SEC(".maps")

#define HASH(name, key_, value_, n) TABLE(name, BPF_MAP_TYPE_HASH, key_, value_, n, BPF_F_NO_PREALLOC)
#define LRU(name, key_, value_, n) TABLE(name, BPF_MAP_TYPE_LRU_HASH, key_, value_, n, 0)
#define TRIE(name, key_, value_, n) TABLE(name, BPF_MAP_TYPE_LPM_TRIE, key_, value_, n, BPF_F_NO_PREALLOC)

/* User space, by single-word stores; the program adds to pending_serial. */
MMAP_ARRAY(plane_control, struct control, 1);

/* User space. Not read by the program. */
ARRAY(plane_meta, BPF_MAP_TYPE_ARRAY, struct meta, 1);

/* User space, always the half that control.selector does not name. */
ARRAY(plane_rules, BPF_MAP_TYPE_ARRAY, struct rules, 2);
ARRAY(backends, BPF_MAP_TYPE_ARRAY, struct backend, 2 * SLOTS);
ARRAY(backends6, BPF_MAP_TYPE_ARRAY, struct backend6, 2 * SLOTS);
ARRAY(servers, BPF_MAP_TYPE_ARRAY, struct server_bucket, 2 * SERVER_BUCKETS);
ARRAY(servers6, BPF_MAP_TYPE_ARRAY, struct server6_bucket, 2 * SERVER_BUCKETS);
ARRAY(maglev, BPF_MAP_TYPE_ARRAY, struct maglev_chunk, 2 * POOLS * CHUNKS);
TRIE(not_return, struct not_return_key, __u32, MAX_NOT_RETURN);
TRIE(not_return6, struct not_return6_key, __u32, MAX_NOT_RETURN);
/* Where not_return has something: by selector, then by family. */
ARRAY(not_return_places, BPF_MAP_TYPE_ARRAY, struct places, 4);

/* User space: where a route other than the default one leads, by family. Local
 * facts; all bits set where nothing can be said. */
ARRAY(routed_places, BPF_MAP_TYPE_ARRAY, struct places, 2);

/* User space writes the words, the program their upper 16 bits. Never an LRU:
 * an eviction would be a silent change of server. */
MMAP_ARRAY(affinity4, struct bucket4, 2);
MMAP_ARRAY(affinity6, struct bucket6, 2);
HASH(affinity_stash, struct client_key, __u64, MAX_STASH);

/* Proofs without an answer. The program inserts and raises, user space deletes. */
HASH(pending_proofs, struct client_key, struct pending, MAX_PENDING);

/* User space: proofs that the program keeps to itself for a while. Apart from
 * pending_proofs, so that refusals in plenty leave room for what counts; an
 * eviction only ends a silence early. */
LRU(silences, struct client_key, struct pending, MAX_SILENCES);

/* User space: what netlink says of each interface, by ifindex modulo; and which
 * VLAN device a tagged frame belongs to. */
ARRAY(interfaces, BPF_MAP_TYPE_ARRAY, struct interface, INTERFACES);
HASH(vlans, struct vlan_key, __u32, MAX_VLANS);

/* User space: what to trace. */
ARRAY(trace_filters, BPF_MAP_TYPE_ARRAY, struct trace_filter, 1);

/* The program. */
ARRAY(counters, BPF_MAP_TYPE_PERCPU_ARRAY, struct count, REASON_COUNT);
ARRAY(event_counters, BPF_MAP_TYPE_PERCPU_ARRAY, struct events, 1);
ARRAY(by_slot, BPF_MAP_TYPE_PERCPU_ARRAY, struct slot_state, SLOTS);
ARRAY(next_hop_by_client, BPF_MAP_TYPE_PERCPU_ARRAY, struct next_hop, NEXT_HOPS_BY_CLIENT);
ARRAY(next_hop_by_vip, BPF_MAP_TYPE_PERCPU_ARRAY, struct next_hop, MAX_VIPS * NEXT_HOPS_BY_VIP);
ARRAY(answers, BPF_MAP_TYPE_PERCPU_ARRAY, struct allowance, 4); /* by direction and kind */
ARRAY(scratches, BPF_MAP_TYPE_PERCPU_ARRAY, struct scratch, 1);
LRU(fragments, struct fragment_key, __u32, MAX_FRAGMENTS);
LRU(fragments6, struct fragment6_key, __u32, MAX_FRAGMENTS);
LRU(sightings, struct client_key, __u32, MAX_SIGHTINGS); /* low half of jiffies */
LRU(sa_clients, struct spis, struct sa_client, MAX_SAS);
LRU(sources, struct client_key, struct allowance, MAX_SOURCES);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, TRACE_BYTES);
} trace_ring SEC(".maps");
