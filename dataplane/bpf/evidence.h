/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What packets prove about clients, and whether user space must hear of it. */
#pragma once
#include "affinity.h"

struct proof {
	__u8 level; /* 0 = nothing proved */
	__u8 opening;
};

static __always_inline int is_protected(const struct service *s)
{
	return s->first_payload == IKE_PAYLOAD_SK || s->first_payload == IKE_PAYLOAD_SKF;
}

/* prove reads a first or whole return packet. Never evidence: an IKE_SA_INIT
 * response (anyone gets one), an unprotected notify, a keepalive, a TCP handshake. */
static __always_inline void prove(const struct service *s, struct proof *proof)
{
	int response = s->flags & IKE_FLAG_RESPONSE;

	proof->level = 0;
	proof->opening = 0;
	if (s->kind == KIND_ESP && s->on_4500) {
		if (s->payload_bytes >= ESP_PAYLOAD_MIN_BYTES)
			proof->level = CONFIRMED;
		return;
	}
	if (s->kind == KIND_TCP) {
		if (s->payload_bytes) {
			proof->level = CONFIRMED;
			proof->opening = 1;
		}
		return;
	}
	if (s->kind != KIND_IKE || !is_protected(s))
		return;
	proof->level = EARNED_SK;
	if (s->exchange == IKE_AUTH && response && s->message_id >= 2)
		proof->level = EARNED_AUTH;
	proof->opening = response && (s->exchange == IKE_AUTH || s->exchange == IKE_INTERMEDIATE);
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
__noinline int tell_user(struct client_key *key, struct pending *now, __u32 jiffies)
{
	__u32 zero = 0;
	struct pending *had;
	struct control *c;
	struct events *e;

	if (!key || !now)
		return 0;
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
static __always_inline void learn(struct flow *f, const struct record *r, const struct proof *proof,
				  const struct side *from, const int six)
{
	__u8 stance = stance_of(from, f->service.class);
	struct scratch *room;

	if (!known(stance) || f->dry)
		return; /* a void server earns nothing */
	if (r->slot) {
		if (r->slot == f->slot) {
			if (proof->level <= r->state)
				return;
		} else if (!proof->opening || !may_take(stance)) {
			return;
		}
	}
	room = scratch_here();
	if (!room)
		return;
	client_key(&f->client, f->service.class, &room->key, six);
	room->now = (struct pending){.slot = f->slot, .saw = r->slot, .level = proof->level, .opening = proof->opening};
	tell_user(&room->key, &room->now, f->jiffies);
}

/* sighted notes a client's packet and tells whether there was one of its kind
 * already, between a tick and a minute ago. */
__noinline int sighted(struct client_key *key, __u32 level, __u32 jiffies, __u32 note)
{
	__u32 *was, age;
	int again = 0;

	if (!key)
		return 0;
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

	if (s->kind == KIND_IKE && s->responder && is_protected(s))
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
	if (!sighted(&room->key, level, f->jiffies, !after) && !(s->kind == KIND_IKE && f->packet.more))
		return;
	room->now = (struct pending){.slot = f->slot, .saw = r->slot, .level = level};
	tell_user(&room->key, &room->now, f->jiffies);
}
