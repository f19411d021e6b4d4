/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a client to a VIP. */
#pragma once
#include "evidence.h"
#include "icmp.h"

/* within_limit counts a packet against its source's second. Only where a limit is
 * set: it costs a look-up. */
__noinline int within_limit(__u64 jiffies, __u64 limit)
{
	struct allowance *a, first = {.since = jiffies, .used = 1};
	struct scratch *room = scratch_here();
	struct client_key *key;

	if (!room)
		return 1;
	key = &room->key;
	a = bpf_map_lookup_elem(&sources, key);
	if (a)
		return allowed(a, jiffies, limit);
	bpf_map_update_elem(&sources, key, &first, BPF_ANY);
	return 1;
}

static __always_inline int over_limit(struct flow *f, const int six)
{
	struct scratch *room;

	if (!f->rules->source_limit || f->dry)
		return 0;
	room = scratch_here();
	if (!room)
		return 0;
	client_key(&f->client, CLASS_IKE, &room->key, six);
	return !within_limit(f->jiffies, f->rules->source_limit);
}

/* opening: may this packet change a client's server while the recorded one may
 * not take it? Every piece of a fragmented datagram may, and all of TCP: a reset
 * makes its client dial again. */
static __always_inline int opening(const struct flow *f)
{
	__u8 exchange = f->service.exchange;

	if (f->service.class == CLASS_TCP)
		return 1;
	if (f->service.kind == KIND_ICMP_ERROR)
		return 0;
	if (is_fragment(&f->packet))
		return 1;
	return f->service.kind == KIND_IKE && exchange != IKE_CREATE_CHILD_SA &&
	       exchange != IKE_INFORMATIONAL && exchange != IKE_FOLLOWUP_KE;
}

/* choose finds the packet's server, f->slot and *to. */
static __always_inline __u32 choose(struct flow *f, __u32 vip, struct record *r, struct side *to, const int six)
{
	__u32 class = f->service.class;

	record_of(f, r, vip, class, six);
	if (r->slot && (r->stance != STANCE_LEAVE || !opening(f))) {
		f->slot = r->slot;
		*to = r->server;
		if (f->service.kind != KIND_ICMP_ERROR)
			saw(f, r, 0, six);
		return FORWARD_AFFINITY;
	}
	if (!r->slot) {
		f->slot = followed(f, vip, class, to, six);
		if (f->slot)
			return FORWARD_OTHER_CLASS;
	}
	f->slot = maglev_slot(f, vip, class, six);
	if (!f->slot)
		return DROP_NO_BACKEND;
	if (!backend_at(f, f->slot, to, six))
		return DROP_TABLE;
	return r->slot ? FORWARD_REOPENED : FORWARD_MAGLEV;
}

/* client_of says whose packet it is: of an ICMP error, whom the quoted one went to. */
static __always_inline void client_of(struct flow *f, const struct who *w, const int six)
{
	struct packet *p = &f->packet;
	struct ipv6hdr *q6;
	struct iphdr *q4;

	if (six) {
		f->client.v6.hi = p->ip6->saddr[0];
		f->client.v6.lo = p->ip6->saddr[1];
		if (f->service.kind == KIND_ICMP_ERROR) {
			q6 = at(p, f->service.quoted, sizeof(*q6));
			f->client.v6.hi = q6 ? q6->daddr[0] : 0;
			f->client.v6.lo = q6 ? q6->daddr[1] : 0;
		}
		f->client.v6.hi &= w->mask.hi;
		f->client.v6.lo &= w->mask.lo;
		return;
	}
	f->client.v4 = p->ip->saddr;
	if (f->service.kind == KIND_ICMP_ERROR) {
		q4 = at(p, f->service.quoted, sizeof(*q4));
		f->client.v4 = q4 ? q4->daddr : 0;
	}
}

static __always_inline __u32 inbound(struct flow *f, const struct who *who, struct way *w, const int six)
{
	struct record r = {};
	struct side to = {};
	__u32 reason;

	classify(&f->packet, &f->service, 1, who->flags & PASSTHROUGH);
	if (quotes_server(f, 1, who->flags, six))
		quote_classify(&f->service);
	settle(&f->packet, &f->service);
	switch (f->service.kind) {
	case KIND_OTHER:
		return done(f, XDP_PASS, PASS_LOCAL_VIP);
	case KIND_MALFORMED:
		return done(f, XDP_DROP, DROP_MALFORMED);
	case KIND_NOT_IKEV2:
		return done(f, XDP_DROP, DROP_NOT_IKEV2);
	}
	client_of(f, who, six);
	if (f->service.kind != KIND_ICMP_ERROR && over_limit(f, six))
		return done(f, XDP_DROP, DROP_SOURCE_LIMIT);
	reason = choose(f, who->vip, &r, &to, six);
	if (reason == DROP_NO_BACKEND || reason == DROP_TABLE)
		return done(f, XDP_DROP, reason);
	w->state = bpf_map_lookup_elem(&by_slot, &f->slot);
	if (!w->state)
		return done(f, XDP_DROP, DROP_TABLE);
	if (f->service.kind == KIND_ICMP_ERROR)
		reason = FORWARD_ICMP_ERROR;
	w->hop = &w->state->hop;
	w->vip = who->vip;
	w->delta = to.delta_in;
	w->dsr = (to.flags & DSR) != 0;
	if (six)
		w->to6 = to.v6->address;
	else
		w->to = to.v4->address;
	if (w->dsr && f->service.class == CLASS_IKE && f->service.kind != KIND_ICMP_ERROR)
		learn_forward(f, &r, &to, six);
	return done(f, ACTION_FORWARD, reason);
}
