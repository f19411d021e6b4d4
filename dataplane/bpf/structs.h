/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What lies in the maps. Go's mirror is generated from here (bpf2go -type). */
#pragma once
#include "consts.h"

/* The words that user space stores at once, through its own mapping. */
struct control {
	__u32 selector;        /* which half of the doubled tables counts: 0 or 1 */
	__u32 next_hop_serial; /* changes when routes, neighbours or links change */
	__u32 pending_serial;  /* changed by the program: pending has news */
	__u32 tracing;         /* somebody follows a client: look into trace_filters */
	__u32 alive;           /* low half of jiffies when user space last looked at the routes */
	__u32 unused[3];
};
_Static_assert(sizeof(struct control) == 32, "shared with Go");

/* Whose maps these are and what they hold. Written last. The first 40 bytes are
 * the same in every schema. */
struct meta {
	__u32 schema;
	__u32 unused;
	__u64 index;
	__u64 generation;
	__u8 cluster_id[16];
	__u64 affinity_seed;
};
_Static_assert(sizeof(struct meta) == 48, "shared with Go");

/* An IPv6 address, as two words loaded from its bytes. */
struct in6 {
	__u64 hi;
	__u64 lo;
};

struct vip {
	__be32 address;
	__u8 index;
	__u8 flags;
	__u16 unused;
};

struct vip6 {
	struct in6 address;
	struct in6 mask; /* of the client key */
	__u8 index;
	__u8 flags;
	__u8 unused[6];
};
_Static_assert(sizeof(struct vip6) == 40, "shared with Go");

/* One generation's constants; the map holds two. */
struct rules {
	__u64 seed[CLASSES];      /* maglev.Seed by class: IPv4 */
	__u64 class_key[CLASSES]; /* first half of the hash key, with the class: IPv6 */
	__u64 key1;               /* second half of the hash key, little endian */
	__u64 generation;
	__u64 server6_multiplier; /* both odd; chosen so that no bucket overflows */
	__u32 server_multiplier;
	__u32 serial; /* changes with every flip */
	__u32 table_size;
	__u32 source_limit; /* packets a second; 0 = none */
	__u32 vips;
	__u32 vips6;
	struct vip vip[MAX_VIPS];
	struct vip6 vip6[MAX_VIPS];
};
_Static_assert(sizeof(struct rules) == 80 + 48 * MAX_VIPS, "shared with Go");

struct backend {
	__be32 address; /* 0 = no backend in this slot */
	__be32 vip_address;
	__u32 inbound_delta; /* checksum: VIP out, backend in (RFC 1624) */
	__u32 return_delta;  /* the other way round */
	__u8 vip;
	__u8 stance[CLASSES];
	__u8 flags;
	__u8 unused[4];
};
_Static_assert(sizeof(struct backend) == 24, "shared with Go");

struct backend6 {
	struct in6 address; /* 0 = no backend in this slot */
	struct in6 vip_address;
	struct in6 mask; /* of its VIP's client keys */
	__u32 inbound_delta;
	__u32 return_delta;
	__u8 vip;
	__u8 stance[CLASSES];
	__u8 flags;
	__u8 unused[4];
};
_Static_assert(sizeof(struct backend6) == 64, "one cache line");

/* Backends by address: a bucket of a cache line's half. */
struct server {
	__be32 address;
	__u32 slot;
};
struct server_bucket {
	struct server way[SERVER_WAYS];
};
_Static_assert(sizeof(struct server_bucket) == 32, "shared with Go");

struct server6 {
	struct in6 address;
	__u64 slot;
};
struct server6_bucket {
	struct server6 way[SERVER_WAYS];
};
_Static_assert(sizeof(struct server6_bucket) == 96, "shared with Go");

struct maglev_chunk {
	__u16 slot[PLACES_PER_CHUNK];
};
_Static_assert(sizeof(struct maglev_chunk) == 64, "shared with Go");

/* The affinity table: package bucket has the layout and the argument. A word is
 * match:32 slot:8 state:2 class:1 unused:5 tick:15 heard:1, lowest bit first; the
 * program stores its upper 16 bits and nothing else. */
struct bucket4 {
	__u64 word[WAYS4];
	__u64 overflow;
};
_Static_assert(sizeof(struct bucket4) == 64, "one cache line");
struct bucket6 {
	__u64 word[WAYS6];
	__u64 overflow;
	struct in6 key[WAYS6];
};
_Static_assert(sizeof(struct bucket6) == 128, "two cache lines");

struct client_key {
	__u8 client[16];
	__u8 class;
	__u8 level; /* of sightings only */
	__u8 unused[6];
};
_Static_assert(sizeof(struct client_key) == 24, "shared with Go");

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

/* An IKE SA, and whom its last message went to. */
struct spis {
	__u64 initiator;
	__u64 responder;
};
_Static_assert(sizeof(struct spis) == 16, "shared with Go");
struct sa_client {
	__u8 client[16]; /* as in client_key */
	__u32 at;        /* low half of jiffies */
	__u32 unused;
};
_Static_assert(sizeof(struct sa_client) == 24, "shared with Go");

/* The generation is part of the key: prefixlen = 32 + that of the prefix. */
struct not_return_key {
	__u32 prefixlen;
	__u32 selector;
	__be32 address;
};
_Static_assert(sizeof(struct not_return_key) == 12, "shared with Go");
struct not_return6_key {
	__u32 prefixlen;
	__u32 selector;
	__u8 address[16];
};
_Static_assert(sizeof(struct not_return6_key) == 24, "shared with Go");

/* A bit for each place that destinations fall into, see destination_place. */
struct places {
	__u64 word[PLACES_BYTES / 8];
};

struct interface {
	__u32 ifindex;
	__u32 mtu;
	__u8 mac[6];
	__u8 flags;
	__u8 unused;
	__u32 lower; /* where its frames leave: itself, its master, or a VLAN device's parent */
	__u16 vlan;  /* VLAN ID of its frames there, with VLAN_SERVICE; 0 = no tag */
	__u16 unused2;
	__u32 master; /* owns the VLAN devices and routes of its frames: itself, or the bond it is in */
};
_Static_assert(sizeof(struct interface) == 28, "shared with Go");

struct vlan_key {
	__u32 lower; /* never a bond's member: its master */
	__u32 vlan;  /* VLAN ID, with VLAN_SERVICE */
};

struct count {
	__u64 packets;
	__u64 bytes;
};

/* Incidents beside the verdicts, per CPU. */
struct events {
	__u64 next_hop_miss;
	__u64 pending_written;
	__u64 pending_full;
	__u64 partial_repaired;
	__u64 answers_withheld;
	__u64 trace_lost;
};

/* A cached next hop: one cache line. Per CPU, so nobody else writes it. */
struct next_hop {
	__u64 expires; /* jiffies; 0 = empty */
	__u32 serial;  /* control.next_hop_serial it was learned at */
	__u32 rules;   /* rules.serial: a reply's destination is not in not_return */
	struct in6 destination; /* IPv4: in the low half of hi */
	__u32 ifindex; /* where the frame leaves */
	__u16 mtu;
	__u16 vlan; /* its tag there, as in struct interface; 0 = none */
	__u8 dmac[6];
	__u8 smac[6];
	__u8 flags; /* of the interface, and HOP_DIRECT */
	__u8 vip;   /* index of the VIP whose replies go there; by client only */
	__u8 unused[2];
};
_Static_assert(sizeof(struct next_hop) == 56, "shared with Go");
_Static_assert(__builtin_offsetof(struct next_hop, dmac) == 40 && __builtin_offsetof(struct next_hop, smac) == 46, "read as two words");

/* What is kept for each backend, per CPU. */
struct slot_state {
	struct next_hop hop;
	struct count in;
	struct count out;
	__u64 esp; /* of out: what only a working service sends */
	__u64 sk;
};
_Static_assert(sizeof(struct slot_state) == 104, "shared with Go");

struct fragment_key {
	__be32 source;
	__be32 destination;
	__be16 id;
	__u8 protocol;
	__u8 unused;
};
_Static_assert(sizeof(struct fragment_key) == 12, "no padding in a key");
struct fragment6_key {
	struct in6 source;
	struct in6 destination;
	__be32 id;
	__u8 protocol;
	__u8 unused[3];
};
_Static_assert(sizeof(struct fragment6_key) == 40, "no padding in a key");

enum { FRAGMENT_RETURN = 1, FRAGMENT_OTHER = 2 };

/* A second of one source, or of this CPU's answers. */
struct allowance {
	__u64 since; /* jiffies */
	__u64 used;
};

/* What an answer needs to know. */
struct answer {
	__u32 l3;
	__u32 total;
	__u32 mtu; /* 0: time exceeded */
	__u32 six;
	struct in6 source; /* IPv4: in the low half of hi */
	struct in6 destination;
};

/* What of a relayed ICMP error becomes what. */
struct relay {
	__u32 l4;        /* offset of the ICMP header */
	__u32 end;       /* of the packet */
	__u32 quoted;    /* offset of the quoted IP header */
	__u32 quoted_l4; /* of what follows it */
	__u32 delta; /* of the quoted address, as a checksum difference */
	__u32 outer; /* of the packet's own */
	__u8 protocol; /* quoted */
	__u8 later;
	__u8 source; /* the quoted source changes, else its destination */
	__u8 six;
	struct in6 to;
};

/* Room for what the rare paths build, one for each CPU: the stack has 512 bytes. */
struct scratch {
	struct bpf_fib_lookup query;
	struct client_key key;
	struct pending now;
	struct spis spis;
	struct sa_client to;
	struct answer answer;
	struct relay relay;
	struct fragment_key fragment;
	struct fragment6_key fragment6;
	struct not_return_key prefix;
	struct not_return6_key prefix6;
	__u32 headers[12];
	__u8 link[20];
	__u8 source[16];
	__u8 destination[16];
	__u8 head[86];
	__u8 quote[MAX_QUOTE];
};

/* Whose packets `vpnlb plane trace` wants to see, and for how long. */
struct trace_filter {
	__u8 client[16]; /* IPv4 mapped; IPv6 cut to bits */
	__u8 mask[16];
	__u64 until; /* jiffies */
	__u64 left;  /* packets; counted down without locking: a few more may come */
};
struct trace_event {
	__u64 jiffies;
	__u32 ifindex;
	__u32 out;
	__u16 bytes;
	__u8 reason;
	__u8 action;
	__u16 slot;
	__u8 head[86]; /* of the frame as it leaves */
};
_Static_assert(sizeof(struct trace_event) == 112, "shared with Go");
