/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a server to a client, and ICMP errors about what goes to servers. */
#pragma once
#include "evidence.h"
#include "forward.h"
#include "icmp.h"

/* not_return_has: is the destination one of a member, a VIP, another backend, a
 * gateway, an inside prefix? Then the packet is no reply to a client. */
static __always_inline int not_return_has(struct flow *f, const int six)
{
	struct scratch *room = scratch_here();

	if (!room)
		return 1;
	if (six) {
		room->prefix6.prefixlen = 160;
		room->prefix6.selector = f->selector;
		__builtin_memcpy(room->prefix6.address, f->packet.ip6->daddr, 16);
		return bpf_map_lookup_elem(&not_return6, &room->prefix6) != 0;
	}
	room->prefix = (struct not_return_key){64, f->selector, f->packet.ip->daddr};
	return bpf_map_lookup_elem(&not_return, &room->prefix) != 0;
}

/* destination_place is the bit of a destination: IPv4 its first 16 bits; IPv6 a
 * hash of its first 32, and one place for all of fc00::/7. Package dataplane says
 * the same (places.go). */
static __always_inline __u32 destination_place(const struct packet *p, const int six)
{
	__u32 first;

	if (!six)
		return bpf_ntohl(p->ip->daddr) >> 16;
	first = p->ip6->daddr[0];
	if ((first & 0xfe) == 0xfc)
		return 0;
	return (first * 0x9e3779b1U) >> 16;
}

static __always_inline int place_has(const struct places *places, __u32 place)
{
	return !places || places->word[(place >> 6) & (PLACES_BYTES / 8 - 1)] >> (place & 63) & 1;
}

static __always_inline __u32 client_place(const struct packet *p, const int six)
{
	__u32 mixed;

	if (!six)
		return p->ip->daddr * 0x9e3779b1U;
	mixed = (p->ip6->daddr[0] * 0x9e3779b97f4a7c15ULL ^ p->ip6->daddr[1]) * 0xff51afd7ed558ccdULL >> 32;
	return mixed;
}

/* to_client finds the next hop's place, and tells whether the packet is no reply.
 * Where neither not_return nor a route of its own covers the destination, all
 * clients of the VIP share a few places; else each has one, and a hop that was
 * cached under these rules was a client's then: no need to ask the trie again. */
static __always_inline int to_client(struct flow *f, struct way *w, const int six)
{
	__u32 agreed = f->selector * 2 + !!six, local = !!six, mixed = client_place(&f->packet, six), at_place;
	__u32 place = destination_place(&f->packet, six);
	int special = place_has(bpf_map_lookup_elem(&not_return_places, &agreed), place);

	w->shared = !special && (__u32)f->jiffies - *(volatile __u32 *)&f->control->alive < SHARE_SECONDS * hz &&
		    !place_has(bpf_map_lookup_elem(&routed_places, &local), place);
	if (w->shared) {
		at_place = (w->vip & (MAX_VIPS - 1)) * NEXT_HOPS_BY_VIP + (mixed >> 28);
		w->hop = bpf_map_lookup_elem(&next_hop_by_vip, &at_place);
		return 1;
	}
	at_place = mixed >> 20; /* 12 bits */
	w->hop = bpf_map_lookup_elem(&next_hop_by_client, &at_place);
	if (!w->hop || !special)
		return 1;
	if (next_hop_fresh(f, w, six) && w->hop->rules == f->rules->serial)
		return 1;
	if (not_return_has(f, six))
		return 0;
	if (next_hop_fresh(f, w, six))
		w->hop->rules = f->rules->serial;
	return 1;
}

/* follow remembers what a first fragment was and tells a later one; 0 = the
 * first was not seen. */
static __always_inline __u32 follow(struct flow *f, __u32 flags, const int six)
{
	struct packet *p = &f->packet;
	__u32 *was, is = FRAGMENT_RETURN;
	struct scratch *room;

	if (!is_fragment(p) || f->service.kind == KIND_ICMP_ERROR || p->broken)
		return is;
	if (p->protocol != IPPROTO_UDP && p->protocol != IPPROTO_ESP && !(p->protocol == IPPROTO_TCP && flags & PASSTHROUGH))
		return is;
	room = scratch_here();
	if (!room)
		return is;
	if (six) {
		__builtin_memcpy(&room->fragment6.source, p->ip6->saddr, 32);
		room->fragment6.id = p->id;
		room->fragment6.protocol = p->protocol;
	} else {
		room->fragment = (struct fragment_key){.source = p->ip->saddr, .destination = p->ip->daddr,
						       .id = p->ip->id, .protocol = p->protocol};
	}
	if (f->service.kind == KIND_LATER) {
		was = six ? bpf_map_lookup_elem(&fragments6, &room->fragment6) : bpf_map_lookup_elem(&fragments, &room->fragment);
		return was ? *was : 0;
	}
	if (f->service.kind == KIND_OTHER)
		is = FRAGMENT_OTHER;
	else if (f->service.kind == KIND_MALFORMED || f->service.kind == KIND_NOT_IKEV2)
		return is;
	if (p->offset || f->dry)
		return is;
	if (six)
		bpf_map_update_elem(&fragments6, &room->fragment6, &is, BPF_ANY);
	else
		bpf_map_update_elem(&fragments, &room->fragment, &is, BPF_ANY);
	return is;
}

/* note_reply keeps what a reply tells: the record's tick, the server's counters, and
 * the proof that the client has a session there. What anybody can draw from a server
 * tells nothing. A keepalive touches and is not heard: strongSwan sends them from the
 * first IKE_SA_INIT on. */
static __always_inline void note_reply(struct flow *f, const struct side *from, struct slot_state *state, const int six)
{
	__u32 proof = prove(f, six);
	struct record r = {};

	if (!proof)
		return;
	record_of(f, &r, from->vip, f->service.class, six);
	if (r.slot == f->slot)
		saw(f, &r, proof != PROOF_KEEPALIVE, six);
	if (proof == PROOF_KEEPALIVE)
		return;
	if (!f->dry) {
		if (f->service.kind == KIND_IKE)
			state->sk++;
		else if (f->service.kind == KIND_ESP)
			state->esp++; /* data of TCP says nothing of IKE */
	}
	learn(f, &r, proof, from, six);
}

static __always_inline void client_of_reply(struct flow *f, const struct side *from, const int six)
{
	struct packet *p = &f->packet;

	if (six) {
		f->client.v6.hi = p->ip6->daddr[0] & from->v6->mask.hi;
		f->client.v6.lo = p->ip6->daddr[1] & from->v6->mask.lo;
	} else {
		f->client.v4 = p->ip->daddr;
	}
}

/* outbound: f->slot is the server; f->service is classified. */
static __always_inline __u32 outbound(struct flow *f, const struct side *from, struct way *w, const int six)
{
	__u32 was = follow(f, from->flags, six), reason = FORWARD_RETURN;

	if (f->service.kind == KIND_OTHER || (f->service.kind == KIND_LATER && was == FRAGMENT_OTHER))
		return done(f, XDP_PASS, PASS_BACKEND_OTHER);
	w->source = 1;
	w->vip = from->vip;
	w->delta = from->delta_out;
	if (six)
		w->to6 = from->v6->vip_address;
	else
		w->to = from->v4->vip_address;
	if (!to_client(f, w, six))
		return done(f, XDP_PASS, PASS_NOT_RETURN);
	w->state = bpf_map_lookup_elem(&by_slot, &f->slot);
	if (!w->hop || !w->state)
		return done(f, XDP_DROP, DROP_TABLE);
	switch (f->service.kind) {
	case KIND_MALFORMED:
		return done(f, XDP_DROP, DROP_MALFORMED);
	case KIND_NOT_IKEV2:
		return done(f, XDP_DROP, DROP_NOT_IKEV2);
	case KIND_ICMP_ERROR:
		return done(f, ACTION_FORWARD, FORWARD_RETURN_ICMP_ERROR);
	case KIND_LATER:
		reason = was ? FORWARD_RETURN_FRAGMENT : FORWARD_RETURN_UNKNOWN;
	}
	client_of_reply(f, from, six);
	note_reply(f, from, w->state, six);
	return done(f, ACTION_FORWARD, reason);
}

/* quoted_slot gives the slot of the backend that an ICMP error's quoted packet was
 * going to, if it was of a service of ours there; 0 = none. Of a backend without
 * DSR only. */
static __always_inline __u32 quoted_slot(struct flow *f, struct side *to, const int six)
{
	struct packet *p = &f->packet;
	struct ipv6hdr *q6;
	struct iphdr *q4;
	__u32 slot;

	if (!quote_read(p, &f->service, six))
		return 0;
	if (six) {
		q6 = at(p, f->service.quoted, sizeof(*q6));
		slot = q6 ? server6_slot(f, q6->daddr[0], q6->daddr[1]) : 0;
	} else {
		q4 = at(p, f->service.quoted, sizeof(*q4));
		slot = q4 ? server4_slot(f, q4->daddr) : 0;
	}
	if (!slot || !backend_at(f, slot, to, six) || to->flags & DSR)
		return 0;
	return quote_ours(p, &f->service, 0, to->flags & PASSTHROUGH) ? slot : 0;
}
