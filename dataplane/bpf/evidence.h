/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a server's packet proves, and whether user space must hear of it. */
#pragma once
#include "select.h"

struct proof {
	__u8 level; /* 0 = nothing proved */
	__u8 opening;
};

/* prove reads a first or whole return packet. Never evidence: an IKE_SA_INIT
 * response (anyone gets one), an unprotected notify, a keepalive. */
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
	if (s->kind != KIND_IKE || (s->first_payload != IKE_PAYLOAD_SK && s->first_payload != IKE_PAYLOAD_SKF))
		return;
	proof->level = EARNED_SK;
	if (s->exchange == IKE_AUTH && response && s->message_id >= 2)
		proof->level = EARNED_AUTH;
	proof->opening = response && (s->exchange == IKE_AUTH || s->exchange == IKE_INTERMEDIATE);
}

static __always_inline void count_return(__u32 slot, const struct proof *proof)
{
	struct return_count *c = bpf_map_lookup_elem(&returns, &slot);

	if (!c)
		return;
	if (proof->level == CONFIRMED)
		c->esp++;
	else if (proof->level)
		c->sk++;
}

/* grown: does a proof say something about this client that had does not? */
static __always_inline int grown(const struct pending *had, const struct pending *now)
{
	return had->slot != now->slot || had->saw != now->saw || now->level > had->level || now->opening > had->opening;
}

/* silenced: is this what user space does not want to hear for its time? */
static __always_inline int silenced(struct pending_key *key, const struct pending *now, __u32 jiffies)
{
	const struct pending *s = bpf_map_lookup_elem(&silences, key);

	return s && !grown(s, now) && (__s32)(jiffies - s->quiet_until) < 0;
}

/* tell_user writes the proof into pending, level-triggered: an element stays
 * until user space has answered it. Not inlined: it is the rare path. */
static __noinline int tell_user(struct pending_key *key, struct pending *now, __u32 jiffies)
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

/* learn decides whether a proof changes what is recorded: insert, raise, or
 * replace a server that may not take openings, by the response to an opening. */
static __always_inline void learn(struct flow *f, const struct record *r, const struct proof *proof, __u32 slot,
				  const struct backend *b, __be32 client)
{
	struct pending_key key = {.client = {[10] = 0xff, [11] = 0xff}, .class = CLASS_IKE};
	struct pending now = {.slot = slot, .level = proof->level, .opening = proof->opening};
	__u8 stance = b->stance[CLASS_IKE - 1];

	if (stance < STANCE_TAKE || stance > STANCE_LEAVE)
		return; /* a void server earns nothing */
	if (r->entry) {
		now.saw = r->slot;
		if (r->slot == slot) {
			if (proof->level <= r->state)
				return;
		} else if (!proof->opening || r->stance != STANCE_LEAVE ||
			   (stance != STANCE_TAKE && stance != STANCE_KEEP)) {
			return;
		}
	}
	__builtin_memcpy(&key.client[12], &client, 4);
	tell_user(&key, &now, f->jiffies);
}
