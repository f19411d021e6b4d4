/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which server: who is who, the affinity record, the Maglev table. */
#pragma once
#include "verdict.h"

static __always_inline struct vip *vip_of(struct rules *rules, __be32 address)
{
	for (__u32 i = 0; i < MAX_VIPS; i++) {
		if (i >= rules->vips)
			break;
		if (rules->vip[i].address == address)
			return &rules->vip[i];
	}
	return 0;
}

/* server_slot gives the slot of a backend's address, 0 = not a backend's. */
static __always_inline __u32 server_slot(struct flow *f, __be32 address)
{
	__u32 place = (address * f->rules->server_multiplier) >> 23; /* 9 bits */
	struct server_bucket *bucket;

	place = f->selector * SERVER_BUCKETS + place;
	bucket = bpf_map_lookup_elem(&servers, &place);
	if (!bucket)
		return 0;
#pragma unroll
	for (int i = 0; i < SERVER_WAYS; i++)
		if (bucket->way[i].address == address)
			return bucket->way[i].slot;
	return 0;
}

static __always_inline struct backend *backend_at(struct flow *f, __u32 slot)
{
	__u32 place = f->selector * SLOTS + (slot & (SLOTS - 1));

	return bpf_map_lookup_elem(&backends, &place);
}

static __always_inline __u64 mix(__u64 x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

/* maglev_slot is the server of an unknown client: "vpnlb-hash-1", see package
 * maglev, which this must equal to the bit. */
static __always_inline __u32 maglev_slot(struct flow *f, __u32 vip, __be32 client)
{
	__u64 mapped = (__u64)client << 32 | 0xffff0000U;
	__u64 hash = mix(mix(f->rules->seed[CLASS_IKE - 1] ^ mapped) + f->rules->key1);
	__u32 place = ((hash >> 32) * f->rules->table_size) >> 32;
	__u32 chunk = (f->selector * POOLS + vip * CLASSES + CLASS_IKE - 1) * CHUNKS + place / PLACES_PER_CHUNK;
	struct maglev_chunk *c = bpf_map_lookup_elem(&maglev, &chunk);

	return c ? c->slot[place % PLACES_PER_CHUNK] : 0;
}

/* A record as one load saw it, and what it is worth for this packet. */
struct record {
	struct affinity *entry; /* 0 = none that counts */
	struct backend *backend;
	__u16 slot;
	__u16 client_tick;
	__u16 server_tick;
	__u8 state;
	__u8 stance;
};

/* record_of finds the client's record. It counts only if it names a backend of
 * the packet's VIP that is not void. */
static __always_inline void record_of(struct flow *f, struct record *r, __be32 client, __u8 vip)
{
	struct affinity4_key key = {.client = client, .class = CLASS_IKE};
	struct affinity *word = bpf_map_lookup_elem(&affinity4, &key);
	struct backend *b;
	__u64 v;

	r->entry = 0;
	if (!word)
		return;
	v = *(volatile __u64 *)word;
	r->slot = v;
	r->state = v >> 16;
	r->client_tick = v >> 32;
	r->server_tick = v >> 48;
	b = backend_at(f, r->slot);
	if (!b || r->slot >= SLOTS || !b->address || b->vip != vip)
		return;
	r->stance = b->stance[CLASS_IKE - 1];
	if (r->stance < STANCE_TAKE || r->stance > STANCE_LEAVE)
		return;
	r->backend = b;
	r->entry = word;
}

/* opening: may this packet change a client's server while the recorded one may
 * not take it? Every piece of a fragmented datagram may. */
static __always_inline int opening(const struct flow *f)
{
	__u8 exchange = f->service.exchange;

	if (f->packet.fragment)
		return 1;
	return f->service.kind == KIND_IKE && exchange != IKE_CREATE_CHILD_SA &&
	       exchange != IKE_INFORMATIONAL && exchange != IKE_FOLLOWUP_KE;
}
