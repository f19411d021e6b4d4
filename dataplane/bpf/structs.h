/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What lies in the maps. Go's mirror is generated from here (bpf2go -type). */
#pragma once
#include "consts.h"

/* The two words that user space stores at once, through its own mapping. */
struct control {
	__u32 selector;        /* which half of the doubled tables counts: 0 or 1 */
	__u32 next_hop_serial; /* changes when routes, neighbours or links change */
	__u32 pending_serial;  /* changed by the program: pending has news */
	__u32 unused;
};
_Static_assert(sizeof(struct control) == 16, "shared with Go");

/* Whose maps these are and what they hold. Written last. */
struct meta {
	__u32 schema;
	__u32 unused;
	__u64 index;
	__u64 generation;
	__u8 cluster_id[16];
};
_Static_assert(sizeof(struct meta) == 40, "shared with Go");

struct vip {
	__be32 address;
	__u8 index;
	__u8 flags; /* VIP_PASSTHROUGH */
	__u16 unused;
};

/* One generation's constants; the map holds two. */
struct rules {
	__u64 seed[CLASSES]; /* maglev.Seed by class */
	__u64 key1;          /* second half of the hash key, little endian */
	__u64 generation;
	__u32 serial; /* changes with every flip */
	__u32 table_size;
	__u32 server_multiplier; /* odd; chosen so that no bucket overflows */
	__u32 vips;
	struct vip vip[MAX_VIPS];
};
_Static_assert(sizeof(struct rules) == 48 + 8 * MAX_VIPS, "shared with Go");

struct backend {
	__be32 address; /* 0 = no backend in this slot */
	__be32 vip_address;
	__u32 inbound_delta; /* checksum: VIP out, backend in (RFC 1624) */
	__u32 return_delta;  /* the other way round */
	__u8 vip;
	__u8 stance[CLASSES];
	__u8 unused[5];
};
_Static_assert(sizeof(struct backend) == 24, "shared with Go");

/* Backends by address: a bucket of a cache line's half. */
struct server {
	__be32 address;
	__u32 slot;
};
struct server_bucket {
	struct server way[SERVER_WAYS];
};
_Static_assert(sizeof(struct server_bucket) == 32, "shared with Go");

struct maglev_chunk {
	__u16 slot[PLACES_PER_CHUNK];
};
_Static_assert(sizeof(struct maglev_chunk) == 64, "shared with Go");

struct affinity4_key {
	__be32 client;
	__u8 class;
	__u8 unused[3];
};
_Static_assert(sizeof(struct affinity4_key) == 8, "shared with Go");

/* One aligned word, so that one load sees one state. The program stores nothing
 * but the two ticks, each as its own 16-bit store. */
struct affinity {
	__u16 slot;
	__u8 state; /* table.Confirmation */
	__u8 unused;
	__u16 client_tick; /* 0 = none */
	__u16 server_tick;
};
_Static_assert(sizeof(struct affinity) == 8, "one word");

struct pending_key {
	__u8 client[16];
	__u8 class;
	__u8 unused[7];
};
_Static_assert(sizeof(struct pending_key) == 24, "shared with Go");

struct pending {
	__u16 slot;
	__u16 saw;
	__u8 level;
	__u8 opening;
	__u16 unused;
	__u32 quiet_until; /* low half of jiffies; in silences only */
	__u32 unused2;
};
_Static_assert(sizeof(struct pending) == 16, "shared with Go");

/* The generation is part of the key: prefixlen = 32 + that of the prefix. */
struct not_return_key {
	__u32 prefixlen;
	__u32 selector;
	__be32 address;
};
_Static_assert(sizeof(struct not_return_key) == 12, "shared with Go");

struct interface {
	__u32 ifindex;
	__u32 mtu;
	__u8 mac[6];
	__u8 flags;
	__u8 unused;
};
_Static_assert(sizeof(struct interface) == 16, "shared with Go");

struct count {
	__u64 packets;
	__u64 bytes;
};

struct return_count {
	__u64 esp;
	__u64 sk;
};

/* Incidents beside the verdicts, per CPU. */
struct events {
	__u64 next_hop_miss;
	__u64 pending_written;
	__u64 pending_full;
	__u64 partial_repaired;
};

/* A cached next hop; per CPU, so nobody else writes it. */
struct next_hop {
	__u64 expires; /* jiffies; 0 = empty */
	__u32 serial;  /* control.next_hop_serial it was learned at */
	__u32 ifindex;
	__be32 destination;
	__be32 source;
	__u32 rules; /* rules.serial: a reply's destination is not in not_return */
	__u16 mtu;
	__u8 dmac[6];
	__u8 smac[6];
	__u8 flags; /* of the interface */
	__u8 unused;
};
_Static_assert(sizeof(struct next_hop) == 48, "shared with Go");

struct fragment_key {
	__be32 source;
	__be32 destination;
	__be16 id;
	__u8 protocol;
	__u8 unused;
};
_Static_assert(sizeof(struct fragment_key) == 12, "no padding in a key");

enum { FRAGMENT_RETURN = 1, FRAGMENT_OTHER = 2 };
