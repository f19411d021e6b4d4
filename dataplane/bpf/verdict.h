/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* State of one packet on its way through the program. */
#pragma once
#include "maps.h"
#include "parse.h"

/* A client's key: IPv4 the address, IPv6 the prefix that its VIP cuts it to. */
struct client {
	__be32 v4;
	struct in6 v6;
};

/* Where a packet goes and what it becomes. */
struct way {
	struct next_hop *hop;
	struct slot_state *state;
	struct in6 to6; /* the address that is written: IPv6 */
	__be32 to;      /* or IPv4 */
	__u32 delta;
	__u32 vip;
	__u8 source; /* the source is rewritten, else the destination */
	__u8 dsr;    /* neither */
	__u8 shared; /* the cached hop is every client's of this VIP */
};

/* Not an action of the kernel's: the packet has a way. */
#define ACTION_FORWARD 0x100

struct flow {
	struct packet packet;
	struct service service;
	struct client client;
	struct xdp_md *ctx;
	struct control *control;
	struct interface *in; /* a VLAN device where the frame is tagged */
	struct rules *rules;
	__u64 jiffies;
	__u32 selector;
	__u32 bytes;   /* of the frame as it came */
	__u32 slot;    /* the server that was chosen, or that sent it; 0 = none */
	__u32 action;  /* XDP_*; XDP_REDIRECT goes to ifindex */
	__u32 ifindex;
	__u8 dry; /* the self-check: leave no trace in any map */
};

/* tick is the coarse time of the affinity entries; never 0, which is none. */
static __always_inline __u16 tick_of(__u64 jiffies)
{
	__u16 tick = (jiffies >> tick_shift) & 0x7fff;

	return tick ? tick : 1;
}

/* done names the reason and the action in one return statement. */
static __always_inline __u32 done(struct flow *f, __u32 action, __u32 reason)
{
	f->action = action;
	return reason;
}

static __always_inline struct events *events_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&event_counters, &zero);
}

static __always_inline struct scratch *scratch_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

/* seen_anew makes the compiler forget what it knows of a number, so that the bound
 * that follows stands in the program and the verifier sees it. */
#define seen_anew(x) asm volatile("" : "+r"(x))

/* allowed spends one of limit in the current second. */
static __always_inline int allowed(struct allowance *a, __u64 jiffies, __u64 limit)
{
	if (jiffies - a->since >= hz) {
		a->since = jiffies;
		a->used = 0;
	}
	if (a->used >= limit)
		return 0;
	a->used++;
	return 1;
}

/* client_key names a client for the maps that user space shares. */
static __always_inline void client_key(const struct client *c, __u8 class, struct client_key *key, const int six)
{
	__builtin_memset(key, 0, sizeof(*key));
	if (six) {
		__builtin_memcpy(key->client, &c->v6, 16);
	} else {
		key->client[10] = key->client[11] = 0xff;
		__builtin_memcpy(key->client + 12, &c->v4, 4);
	}
	key->class = class;
}
