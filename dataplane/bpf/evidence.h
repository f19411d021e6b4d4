/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What packets prove about clients, and whether user space must hear of it. */
#pragma once
#include "affinity.h"

/* A proof is a word: the level, and the bits that follow. 0 = nothing. */
#define PROOF_LEVEL 3
#define PROOF_OPENING 4   /* the response to one */
#define PROOF_KEEPALIVE 8 /* touches a record, and no more */

/* went_elsewhere notes that a message of the IKE SA with these SPIs goes to room->key,
 * and tells whether the last one within ten minutes went to another client: a server
 * knows an SA by its SPIs alone and repeats its answer to whatever address a request
 * comes from (RFC 7296 section 2.1). */
static __always_inline int went_elsewhere(__u64 initiator, __u64 responder, __u32 jiffies)
{
	struct scratch *room = scratch_here();
	struct sa_client *was;
	__u64 *to, *before;

	if (!room)
		return 1; /* cannot be */
	to = (__u64 *)room->key.client;
	room->spis.initiator = initiator;
	room->spis.responder = responder;
	was = bpf_map_lookup_elem(&sa_clients, &room->spis);
	if (was && jiffies - was->at < SA_SECONDS * hz) {
		before = (__u64 *)was->client;
		if (before[0] != to[0] || before[1] != to[1])
			return 1;
		was->at = jiffies;
		return 0;
	}
	__builtin_memcpy(room->to.client, to, 16);
	room->to.at = jiffies;
	room->to.unused = 0;
	bpf_map_update_elem(&sa_clients, &room->spis, &room->to, BPF_ANY);
	return 0;
}

/* ike_proof gives what the IKE message at ike proves. Its header, RFC 7296 section 3.1: SPIs at 0 and 8, next payload at 16,
 * exchange type at 18, flags at 19, message ID at 20, length at 24. What its datagram's
 * length does not bear out proves nothing. The client is room->key; dry: leave no trace.
 * Global, so that the verifier looks at it once. */
__noinline __u32 ike_proof(struct xdp_md *ctx, __u32 ike, __u32 bytes, __u32 jiffies, __u32 dry)
{
	struct packet p = {.data = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end};
	__u8 *h = at(&p, ike, IKE_HEADER_BYTES), next, exchange;
	__u32 response, level = EARNED_SK;

	if (!h || bpf_ntohl(*(__be32 *)(h + 24)) != bytes || !*(__u64 *)(h + 8))
		return 0;
	next = h[16];
	exchange = h[18];
	response = h[19] & IKE_FLAG_RESPONSE;
	if (exchange == IKE_AUTH && response && bpf_ntohl(*(__be32 *)(h + 20)) >= 2)
		level = EARNED_AUTH;
	if (next != IKE_PAYLOAD_SK && next != IKE_PAYLOAD_SKF && next != IKE_PAYLOAD_SA)
		return 0;
	if (!dry && went_elsewhere(*(__u64 *)h, *(__u64 *)(h + 8), jiffies))
		return 0;
	if (next == IKE_PAYLOAD_SA)
		return 0; /* the response of IKE_SA_INIT: its SA begins */
	if (response && (exchange == IKE_AUTH || exchange == IKE_INTERMEDIATE))
		level |= PROOF_OPENING;
	return level;
}

/* prove reads a return packet. Never evidence: an IKE_SA_INIT response (anyone gets
 * one), an unprotected notify, a keepalive, a TCP handshake, a later fragment. */
static __always_inline __u32 prove(struct flow *f, const int six)
{
	const struct service *s = &f->service;
	struct scratch *room;
	__u32 proof = f->packet.zero & 0xf;

	if (s->kind == KIND_ESP) {
		if (s->payload_bytes >= ESP_PAYLOAD_MIN_BYTES)
			proof ^= CONFIRMED;
	} else if (s->kind == KIND_TCP) {
		if (s->payload_bytes)
			proof ^= CONFIRMED | PROOF_OPENING;
	} else if (s->kind == KIND_KEEPALIVE) {
		proof ^= PROOF_KEEPALIVE;
	} else if (s->kind == KIND_IKE) {
		room = scratch_here();
		if (room) {
			client_key(&f->client, CLASS_IKE, &room->key, six);
			proof = ike_proof(f->ctx, s->ike, s->ike_bytes, f->jiffies, f->dry);
		}
	}
	return proof;
}

/* grown: does a proof say something about this client that had does not? */
static __always_inline int grown(const struct pending *had, const struct pending *now)
{
	return had->slot != now->slot || had->saw != now->saw || now->level > had->level || now->opening > had->opening;
}

/* silenced: is this what user space does not want to hear for its time? */
static __always_inline int silenced(struct client_key *key, const struct pending *now, __u32 jiffies)
{
	const struct pending *s = bpf_map_lookup_elem(&silences, key);

	return s && !grown(s, now) && (__s32)(jiffies - s->quiet_until) < 0;
}

/* tell_user writes the proof into pending, level-triggered: an element stays
 * until user space has answered it. Not inlined: it is the rare path. */
__noinline int tell_user(__u32 jiffies)
{
	struct scratch *room = scratch_here();
	struct client_key *key;
	struct pending *had, *now;
	struct control *c;
	struct events *e;
	__u32 zero = 0;

	if (!room)
		return 0;
	key = &room->key;
	now = &room->now;
	had = bpf_map_lookup_elem(&pending_proofs, key);
	if (had ? !grown(had, now) : silenced(key, now, jiffies))
		return 0;
	if (had && had->slot == now->slot) {
		now->level = had->level > now->level ? had->level : now->level;
		now->opening |= had->opening;
	}
	e = bpf_map_lookup_elem(&event_counters, &zero);
	c = bpf_map_lookup_elem(&plane_control, &zero);
	if (!e || !c)
		return 0;
	if (bpf_map_update_elem(&pending_proofs, key, now, BPF_ANY)) {
		e->pending_full++;
		return 0;
	}
	e->pending_written++;
	__sync_fetch_and_add(&c->pending_serial, 1);
	return 0;
}

/* learn decides whether a server's proof changes what is recorded: insert, raise, or
 * replace, by the response to an opening. Whether the recorded server may be replaced
 * is for Apply to say: this node may not have heard yet that it is down, and a login
 * with a certificate has no second such response. */
static __always_inline void learn(struct flow *f, const struct record *r, __u32 proof, const struct side *from,
				  const int six)
{
	__u8 stance = stance_of(from, f->service.class);
	struct scratch *room;

	if (!known(stance) || f->dry)
		return; /* a void server earns nothing */
	if (r->slot) {
		if (r->slot == f->slot) {
			if ((proof & PROOF_LEVEL) <= r->state)
				return;
		} else if (!(proof & PROOF_OPENING) || !may_take(stance)) {
			return;
		}
	}
	room = scratch_here();
	if (!room)
		return;
	client_key(&f->client, f->service.class, &room->key, six);
	room->now = (struct pending){.slot = f->slot, .saw = r->slot, .level = proof & PROOF_LEVEL,
				     .opening = (proof & PROOF_OPENING) != 0};
	tell_user(f->jiffies);
}

/* sighted notes a client's packet and tells whether there was one of its kind
 * already, between a tick and a minute ago. */
__noinline int sighted(__u32 level, __u32 jiffies, __u32 note)
{
	struct scratch *room = scratch_here();
	struct client_key *key;
	__u32 *was, age;
	int again = 0;

	if (!room)
		return 0;
	key = &room->key;
	key->level = level;
	was = bpf_map_lookup_elem(&sightings, key);
	age = was ? jiffies - *was : 60 * hz;
	if (age < 60 * hz)
		again = age >= 1U << tick_shift;
	else if (note)
		bpf_map_update_elem(&sightings, key, &jiffies, BPF_ANY);
	key->level = 0;
	return again;
}

/* learn_forward earns a record at a DSR server, whose replies nobody sees: by two
 * packets, apart in time, that only a client with a finished key exchange has
 * reason to send. They can be forged: budgets hold that down, and nothing is ever
 * replaced. */
static __always_inline void learn_forward(struct flow *f, const struct record *r, const struct side *to, const int six)
{
	struct service *s = &f->service;
	struct scratch *room;
	__u8 level = 0, after;

	if (s->kind == KIND_IKE && ike_proof(f->ctx, s->ike, s->ike_bytes, f->jiffies, 1))
		level = EARNED_SK;
	else if (s->kind == KIND_ESP && (!s->on_4500 || s->payload_bytes >= ESP_PAYLOAD_MIN_BYTES))
		level = CONFIRMED;
	if (!level || f->dry || !known(stance_of(to, CLASS_IKE)))
		return;
	if (r->slot && (r->slot != f->slot || r->state >= level))
		return;
	room = scratch_here();
	if (!room)
		return;
	/* The tunnel that follows a login is the second packet of the two: a client with a
	 * certificate sends one protected request and no other for hours. It is no
	 * sighting itself. */
	after = level == CONFIRMED && !r->slot;
	if (after)
		level = EARNED_SK;
	client_key(&f->client, CLASS_IKE, &room->key, six);
	/* A login in pieces comes this way alone: routers hash pieces by their addresses and
	 * the tunnel by its ports, so another node sees the tunnel, and no login. */
	if (!sighted(level, f->jiffies, !after) && !(s->kind == KIND_IKE && f->packet.more))
		return;
	room->now = (struct pending){.slot = f->slot, .saw = r->slot, .level = level};
	tell_user(f->jiffies);
}
