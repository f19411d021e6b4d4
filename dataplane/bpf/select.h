/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which server: who is who, the Maglev table. */
#pragma once
#include "verdict.h"

/* A VIP, whatever its family. */
struct who {
	__u32 vip; /* index */
	__u32 flags;
	struct in6 mask;
};

static __always_inline int vip4_of(struct rules *rules, __be32 address, struct who *w)
{
	for (__u32 i = 0; i < MAX_VIPS; i++) {
		if (i >= rules->vips)
			break;
		if (rules->vip[i].address != address)
			continue;
		w->vip = rules->vip[i].index;
		w->flags = rules->vip[i].flags;
		return 1;
	}
	return 0;
}

static __always_inline int vip6_of(struct rules *rules, __u64 hi, __u64 lo, struct who *w)
{
	for (__u32 i = 0; i < MAX_VIPS; i++) {
		struct vip6 *v = &rules->vip6[i];

		if (i >= rules->vips6)
			break;
		if (v->address.lo != lo || v->address.hi != hi)
			continue;
		w->vip = v->index;
		w->flags = v->flags;
		w->mask = v->mask;
		return 1;
	}
	return 0;
}

/* server4_slot gives the slot of a backend's address, 0 = not a backend's. */
static __always_inline __u32 server4_slot(struct flow *f, __be32 address)
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

static __always_inline __u32 server6_slot(struct flow *f, __u64 hi, __u64 lo)
{
	__u64 mixed = (hi * 0x9e3779b97f4a7c15ULL ^ lo) * f->rules->server6_multiplier;
	__u32 place = f->selector * SERVER_BUCKETS + (mixed >> 55); /* 9 bits */
	struct server6_bucket *bucket = bpf_map_lookup_elem(&servers6, &place);

	if (!bucket)
		return 0;
#pragma unroll
	for (int i = 0; i < SERVER_WAYS; i++)
		if (bucket->way[i].address.lo == lo && bucket->way[i].address.hi == hi)
			return bucket->way[i].slot;
	return 0;
}

/* What of a backend does not depend on the family. */
struct side {
	struct backend *v4;
	struct backend6 *v6;
	__u32 delta_in, delta_out;
	__u32 vip;
	__u32 flags;
	__u8 stance[CLASSES];
};

/* backend_at fills in a slot's backend; false: nobody is there. */
static __always_inline int backend_at(struct flow *f, __u32 slot, struct side *s, const int six)
{
	__u32 place = f->selector * SLOTS + (slot & (SLOTS - 1));

	if (six) {
		s->v6 = bpf_map_lookup_elem(&backends6, &place);
		if (!s->v6 || !(s->v6->address.hi | s->v6->address.lo))
			return 0;
		s->delta_in = s->v6->inbound_delta;
		s->delta_out = s->v6->return_delta;
		s->vip = s->v6->vip;
		s->flags = s->v6->flags;
		s->stance[0] = s->v6->stance[0];
		s->stance[1] = s->v6->stance[1];
		return 1;
	}
	s->v4 = bpf_map_lookup_elem(&backends, &place);
	if (!s->v4 || !s->v4->address)
		return 0;
	s->delta_in = s->v4->inbound_delta;
	s->delta_out = s->v4->return_delta;
	s->vip = s->v4->vip;
	s->flags = s->v4->flags;
	s->stance[0] = s->v4->stance[0];
	s->stance[1] = s->v4->stance[1];
	return 1;
}

static __always_inline __u8 stance_of(const struct side *s, __u32 class)
{
	return class == CLASS_TCP ? s->stance[1] : s->stance[0];
}

static __always_inline int known(__u8 stance)
{
	return stance >= STANCE_TAKE && stance <= STANCE_LEAVE;
}

static __always_inline int may_take(__u8 stance)
{
	return stance == STANCE_TAKE || stance == STANCE_KEEP;
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
static __always_inline __u32 maglev_slot(struct flow *f, __u32 vip, __u32 class, const int six)
{
	__u32 c = (class - 1) & 1, place, chunk;
	struct maglev_chunk *m;
	__u64 hash;

	if (six)
		hash = mix(mix(f->rules->class_key[c] ^ f->client.v6.hi) ^ f->client.v6.lo);
	else
		hash = mix(f->rules->seed[c] ^ ((__u64)f->client.v4 << 32 | 0xffff0000U));
	hash = mix(hash + f->rules->key1);
	place = ((hash >> 32) * f->rules->table_size) >> 32;
	chunk = (f->selector * POOLS + vip * CLASSES + c) * CHUNKS + place / PLACES_PER_CHUNK;
	m = bpf_map_lookup_elem(&maglev, &chunk);
	return m ? m->slot[place % PLACES_PER_CHUNK] : 0;
}
