/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The affinity table, read. Package bucket has the layout, the writer and the
 * argument why the two may run at once; DESIGN.md has the reasons. */
#pragma once
#include "select.h"

#define WORD_SLOT(w) ((__u32)((w) >> 32) & 0xff)
#define WORD_STATE(w) ((__u32)((w) >> 40) & 3)
#define WORD_CLASS(w) (((__u32)((w) >> 42) & 1) + 1)
#define WORD_SEEN(w) ((__u16)((w) >> 48))
#define HEARD 0x8000

static __always_inline int is_record(__u64 word, __u32 match, __u32 class)
{
	return (__u32)word == match && WORD_SLOT(word) && WORD_CLASS(word) == class;
}

#define WAY4(i)                                                              \
	do {                                                                 \
		word = *(volatile __u64 *)&b->word[i];                       \
		if (is_record(word, client, class)) {                        \
			if (tick)                                            \
				((__u16 *)&b->word[i])[3] = tick;            \
			return word;                                         \
		}                                                            \
	} while (0)

static __always_inline __u64 scan4(struct bucket4 *b, __be32 client, __u32 class, __u16 tick)
{
	__u64 word;

	WAY4(0);
	WAY4(1);
	WAY4(2);
	WAY4(3);
	WAY4(4);
	WAY4(5);
	WAY4(6);
	return 0;
}

/* WAY6 compares the tag first: the key may be in the next cache line. A word is
 * published after its key, and its way is left alone for a while after it was
 * cleared, so a word and its key belong together. */
#define WAY6(i)                                                              \
	do {                                                                 \
		word = *(volatile __u64 *)&b->word[i];                       \
		if (is_record(word, tag, class) && b->key[i].hi == hi && b->key[i].lo == lo) { \
			if (tick)                                            \
				((__u16 *)&b->word[i])[3] = tick;            \
			return word;                                         \
		}                                                            \
	} while (0)

static __always_inline __u64 scan6(struct bucket6 *b, __u64 hi, __u64 lo, __u32 tag, __u32 class, __u16 tick)
{
	__u64 word;

	WAY6(0);
	WAY6(1);
	WAY6(2);
	WAY6(3);
	WAY6(4);
	return 0;
}
_Static_assert(WAYS4 == 7 && WAYS6 == 5, "written out above");

static __always_inline __u32 second_choice(__u64 x, __u32 first, __u32 n)
{
	__u32 second = ((x & 0xffffffff) * n) >> 32;

	if (second != first)
		return second;
	return (first ^ 1) < n ? first ^ 1 : first - 1;
}

static __always_inline __u64 stash_find(const struct client *c, __u32 match, __u32 class, __u16 tick, const int six)
{
	struct scratch *room = scratch_here();
	__u64 *at, word;

	if (!room)
		return 0;
	client_key(c, class, &room->key, six);
	at = bpf_map_lookup_elem(&affinity_stash, &room->key);
	if (!at)
		return 0;
	word = *(volatile __u64 *)at;
	if (!is_record(word, match, class))
		return 0; /* the element has just become another client's */
	if (tick)
		((__u16 *)at)[3] = tick;
	return word;
}

/* find4 and find6 look everywhere. They are global: the verifier looks at each once, by
 * itself, and not again on every path of the program. They give the record's word, as
 * one load saw it, or 0; tick is stored into it if it is not 0 (tick and HEARD: 16 bits,
 * so that nothing that user space changes at the same time is undone). */
__noinline __u64 find4(__u32 client, __u32 class, __u32 tick)
{
	struct client c = {.v4 = client};
	__u64 x = mix((__u64)client ^ affinity_seed), word, overflow;
	__u32 place = ((x >> 32) * buckets4) >> 32;
	struct bucket4 *b = bpf_map_lookup_elem(&affinity4, &place);

	if (!b)
		return 0;
	word = scan4(b, client, class, tick);
	overflow = b->overflow;
	if (word || !overflow)
		return word;
	if (overflow & 0xffff) {
		place = second_choice(x, place, buckets4);
		b = bpf_map_lookup_elem(&affinity4, &place);
		word = b ? scan4(b, client, class, tick) : 0;
	}
	return word || !(overflow >> 16) ? word : stash_find(&c, client, class, tick, 0);
}

__noinline __u64 find6(__u64 hi, __u64 lo, __u32 class, __u32 tick)
{
	struct client c = {.v6 = {hi, lo}};
	__u64 x = hi ^ affinity_seed, word, overflow;
	struct bucket6 *b;
	__u32 place, tag;

	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x = mix(x ^ lo);
	tag = (x * 0xbf58476d1ce4e5b9ULL) >> 32;
	place = ((x >> 32) * buckets6) >> 32;
	b = bpf_map_lookup_elem(&affinity6, &place);
	if (!b)
		return 0;
	word = scan6(b, hi, lo, tag, class, tick);
	overflow = b->overflow;
	if (word || !overflow)
		return word;
	if (overflow & 0xffff) {
		place = second_choice(x, place, buckets6);
		b = bpf_map_lookup_elem(&affinity6, &place);
		word = b ? scan6(b, hi, lo, tag, class, tick) : 0;
	}
	return word || !(overflow >> 16) ? word : stash_find(&c, tag, class, tick, 1);
}

#define MATCH_BITS (0xffffffffULL | 1ULL << 42)

/* is_way is 1 if the word is the client's, else 0, without a branch: which way a client
 * has is random, so a processor cannot guess it. */
static __always_inline __u64 is_way(const __u64 *word, __u64 want)
{
	__u64 differs = (*(const volatile __u64 *)word ^ want) & MATCH_BITS;

	seen_anew(differs);
	differs = (differs - 1) >> 63;
	seen_anew(differs);
	return differs;
}

/* near4 and near6 look into the first bucket only, where nearly all records are, and
 * without a call. They give the record's word, or 0; *more: it may be elsewhere. */
static __always_inline __u64 near4(__be32 client, __u32 class, __u64 *more)
{
	__u64 x = mix((__u64)client ^ affinity_seed), want = client | (__u64)(class - 1) << 42;
	__u32 place = ((x >> 32) * buckets4) >> 32;
	struct bucket4 *b = bpf_map_lookup_elem(&affinity4, &place);
	__u64 way = 0, word;

	*more = 0;
	if (!b)
		return 0;
	for (int i = 1; i < WAYS4; i++)
		way += is_way(&b->word[i], want) * i;
	*more = b->overflow | way;
	if (way >= WAYS4)
		way = 0;
	word = *(volatile __u64 *)&b->word[way];
	return is_record(word, client, class) ? word : 0;
}

static __always_inline __u64 near6(__u64 hi, __u64 lo, __u32 class, __u64 *more)
{
	__u64 x = hi ^ affinity_seed, want, way = 0, word;
	struct bucket6 *b;
	__u32 place, tag;

	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x = mix(x ^ lo);
	tag = (x * 0xbf58476d1ce4e5b9ULL) >> 32;
	want = tag | (__u64)(class - 1) << 42;
	place = ((x >> 32) * buckets6) >> 32;
	b = bpf_map_lookup_elem(&affinity6, &place);
	*more = 0;
	if (!b)
		return 0;
	for (int i = 1; i < WAYS6; i++)
		way += is_way(&b->word[i], want) * i;
	*more = b->overflow | way; /* two clients' tags may be the same: then the sum is of no use */
	if (way >= WAYS6)
		way = 0;
	word = *(volatile __u64 *)&b->word[way];
	if (!is_record(word, tag, class))
		return 0;
	if (b->key[way].hi == hi && b->key[way].lo == lo)
		return word;
	*more = 1; /* another client's tag is the same */
	return 0;
}

static __always_inline __u64 find(const struct client *c, __u32 class, const int six)
{
	__u64 more, word = six ? near6(c->v6.hi, c->v6.lo, class, &more) : near4(c->v4, class, &more);

	if (word || !more)
		return word;
	return six ? find6(c->v6.hi, c->v6.lo, class, 0) : find4(c->v4, class, 0);
}

/* A record and what it is worth for a packet of its class. */
struct record {
	struct side server;
	__u64 word;
	__u32 slot; /* 0 = no record that counts */
	__u8 state;
	__u8 stance;
};

/* record_of finds the client's record. It counts only if it names a backend of
 * the packet's VIP whose records are not void. */
static __always_inline void record_of(struct flow *f, struct record *r, __u32 vip, __u32 class, const int six)
{
	__u32 slot;

	r->slot = 0;
	r->word = find(&f->client, class, six);
	if (!r->word)
		return;
	slot = WORD_SLOT(r->word);
	if (!backend_at(f, slot, &r->server, six) || r->server.vip != vip)
		return;
	r->stance = stance_of(&r->server, class);
	if (!known(r->stance))
		return;
	r->state = WORD_STATE(r->word);
	r->slot = slot;
}

/* followed gives the server of the client's other class, where that may take this
 * one, too: both protocols of a client meet on one server if they can. 0 = none. */
static __always_inline __u32 followed(struct flow *f, __u32 vip, __u32 class, struct side *s, const int six)
{
	__u32 other = class == CLASS_TCP ? CLASS_IKE : CLASS_TCP, slot;
	__u64 word = find(&f->client, other, six);

	if (!word)
		return 0;
	slot = WORD_SLOT(word);
	if (!backend_at(f, slot, s, six) || s->vip != vip)
		return 0;
	if (!known(stance_of(s, other)) || !may_take(stance_of(s, class)))
		return 0;
	return class == CLASS_TCP && s->flags & DSR ? 0 : slot;
}

static __always_inline void touch(const struct client *c, __u32 class, __u16 tick, const int six)
{
	if (six)
		find6(c->v6.hi, c->v6.lo, class, tick);
	else
		find4(c->v4, class, tick);
}

/* saw stores the tick where it is a new one: once in a tick. heard: the packet is a
 * server's, and only a session draws it. */
static __always_inline void saw(struct flow *f, const struct record *r, const int heard, const int six)
{
	__u16 seen = WORD_SEEN(r->word), now = tick_of(f->jiffies) | (heard ? HEARD : seen & HEARD);

	if (seen != now && !f->dry)
		touch(&f->client, f->service.class, now, six);
}
