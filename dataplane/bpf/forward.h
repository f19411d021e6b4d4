/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Next hop, rewriting, and out. */
#pragma once
#include "answer.h"
#include "icmp.h"

/* bound_for is the destination as the packet leaves; IPv4 in the low half of hi. */
static __always_inline struct in6 bound_for(const struct packet *p, const struct way *w, const int six)
{
	if (six)
		return w->source ? (struct in6){p->ip6->daddr[0], p->ip6->daddr[1]} : w->to6;
	return (struct in6){w->source ? p->ip->daddr : w->to, 0};
}

static __always_inline int next_hop_fresh(const struct flow *f, const struct way *w, const int six)
{
	struct in6 to = bound_for(&f->packet, w, six);
	const struct next_hop *n = w->hop;

	if (n->expires <= f->jiffies || n->serial != *(volatile __u32 *)&f->control->next_hop_serial || n->vip != w->vip)
		return 0;
	return w->shared || (n->destination.hi == to.hi && n->destination.lo == to.lo);
}

/* next_hop_learn asks the FIB. The answer is kept for next_hop_jiffies or until
 * user space sees a change of routes, neighbours or links. The serial is read
 * before the question, so that a change meanwhile makes the answer stale. */
__noinline int next_hop_learn(struct xdp_md *ctx, struct next_hop *n, struct bpf_fib_lookup *q,
			      __u32 serial, __u64 jiffies)
{
	__be32 to[4];
	struct interface *out;
	__u32 place;
	long rc;

	if (!n || !q)
		return BPF_FIB_LKUP_RET_BLACKHOLE;
	n->expires = 0;
	__builtin_memcpy(to, q->dst, sizeof(to));
	rc = bpf_fib_lookup(ctx, q, sizeof(*q), 0);
	n->flags = 0;
	if (to[0] == q->dst[0] && (q->family == AF_INET || (to[1] == q->dst[1] && to[2] == q->dst[2] && to[3] == q->dst[3])))
		n->flags = HOP_DIRECT;
	if (rc != BPF_FIB_LKUP_RET_SUCCESS)
		return rc < 0 ? BPF_FIB_LKUP_RET_BLACKHOLE : rc;
	place = q->ifindex % INTERFACES;
	out = bpf_map_lookup_elem(&interfaces, &place);
	n->ifindex = q->ifindex;
	n->vlan = 0;
	if (out && out->ifindex == q->ifindex) {
		n->flags |= out->flags;
		n->ifindex = out->lower;
		n->vlan = out->vlan;
		if (q->tot_len < out->mtu)
			n->flags |= HOP_NARROW;
	}
	n->mtu = q->tot_len;
	__builtin_memcpy(n->dmac, q->dmac, 6);
	__builtin_memcpy(n->smac, q->smac, 6);
	n->serial = serial;
	n->expires = jiffies + next_hop_jiffies;
	return BPF_FIB_LKUP_RET_SUCCESS;
}

/* next_hop_ask gives the FIB's word, and in *mtu that of a route which is too
 * narrow. */
static __always_inline int next_hop_ask(struct flow *f, const struct way *w, __u32 *mtu, const int six)
{
	struct packet *p = &f->packet;
	struct events *e = events_here();
	struct scratch *room = scratch_here();
	struct bpf_fib_lookup *q;
	int rc;

	if (!room || !e)
		return BPF_FIB_LKUP_RET_BLACKHOLE;
	if (!f->dry)
		e->next_hop_miss++;
	q = &room->query;
	*q = (struct bpf_fib_lookup){
		.family = six ? AF_INET6 : AF_INET,
		.l4_protocol = p->protocol,
		/* 0 = any length: of a DSR server the neighbour must be known first. */
		.tot_len = w->dsr ? 0 : p->total,
		.ifindex = f->in->master,
	};
	if (six) {
		__builtin_memcpy(q->src, w->source ? (void *)&w->to6 : (void *)p->ip6->saddr, 16);
		__builtin_memcpy(q->dst, w->source ? (void *)p->ip6->daddr : (void *)&w->to6, 16);
	} else {
		q->src[0] = w->source ? w->to : p->ip->saddr;
		q->dst[0] = w->source ? p->ip->daddr : w->to;
	}
	w->hop->destination = bound_for(p, w, six);
	w->hop->vip = w->vip;
	w->hop->rules = f->rules->serial;
	rc = next_hop_learn(f->ctx, w->hop, q, *(volatile __u32 *)&f->control->next_hop_serial, f->jiffies);
	*mtu = q->tot_len;
	/* A path's MTU that the kernel learned for this client is not the others'. */
	if (w->shared && w->hop->flags & HOP_NARROW)
		w->hop->expires = 0;
	return rc;
}

/* obstacle turns what the FIB said of a packet into a reason; 0 = none. */
static __always_inline __u32 obstacle(int rc, const struct way *w)
{
	int dsr = w->dsr;

	switch (rc) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		return 0;
	case BPF_FIB_LKUP_RET_NOT_FWDED: /* an address of this node, or no route at all */
		return w->source ? PASS_NOT_FORWARDED : DROP_NO_ROUTE;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return DROP_TOO_BIG;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return dsr ? DROP_NO_NEIGHBOUR : PASS_NO_NEIGHBOUR;
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		return dsr ? DROP_NO_ROUTE : PASS_CANNOT_TRANSMIT;
	}
	return DROP_NO_ROUTE;
}

/* transport_sum mends the UDP or TCP sum. A frame that is passed to the kernel
 * keeps its mark, and so does any in generic mode: a partial sum is completed later
 * and must stay the pseudo-header's. One that a driver redirects loses the mark.
 * False: a partial sum that cannot be repaired. */
static __always_inline int transport_sum(struct flow *f, const struct way *w, int passed, const int six)
{
	struct packet *p = &f->packet;
	int udp = p->protocol == IPPROTO_UDP, partial = 0;
	__u16 *check, was;
	__be16 *length = 0;

	if (p->offset || (!udp && p->protocol != IPPROTO_TCP))
		return 1;
	if (udp) {
		length = at(p, p->l4 + 4, 4);
		if (!length || p->l4_bytes < sizeof(struct udphdr))
			return 1;
		check = length + 1;
		if (!*check)
			return 1;
		was = *check;
		if (f->in->flags & INTERFACE_PARTIAL)
			partial = was == pseudo_sum(f->ctx, p->l3, bpf_htons(IPPROTO_UDP) + *length, six);
	} else {
		check = at(p, p->l4 + TCP_CHECK_OFFSET, 2);
		if (!check || p->l4_bytes < TCP_CHECK_OFFSET + 2)
			return 1;
		was = *check;
		if (f->in->flags & INTERFACE_PARTIAL && !is_fragment(p))
			partial = was == pseudo_sum(f->ctx, p->l3, bpf_htons(IPPROTO_TCP) + bpf_htons(p->l4_bytes), six);
	}
	if (partial && !is_fragment(p) && (!udp || bpf_ntohs(*length) == p->l4_bytes) &&
	    sum_right(f->ctx, p->l4, p->l4_bytes, was))
		partial = 0;
	if (partial && !passed && !(f->in->flags & INTERFACE_GENERIC)) {
		struct events *e = events_here();

		if (six || !udp)
			return 0;
		*check = 0; /* legal in IPv4 only, RFC 768 */
		if (e && !f->dry)
			e->partial_repaired++;
		return 1;
	}
	if (w->dsr)
		return 1;
	if (partial) {
		*check = csum_fold(was + w->delta);
		return 1;
	}
	was = csum_change(was, w->delta);
	*check = udp && !was ? 0xffff : was;
	return 1;
}

/* source_delta is the checksum difference of the source: an error may come from a
 * router on the way to the server. */
static __always_inline __u32 source_delta(const struct packet *p, const struct way *w, const int six)
{
	if (six)
		return csum_in6(~p->ip6->saddr[0], ~p->ip6->saddr[1]) + csum_in6(w->to6.hi, w->to6.lo);
	return csum_word(~p->ip->saddr) + csum_word(w->to);
}

/* rewrite changes one address and the sums. False: see transport_sum. */
static __always_inline int rewrite(struct flow *f, const struct way *w, int passed, const int six)
{
	struct packet *p = &f->packet;
	__u32 delta = w->delta;

	if (f->service.kind == KIND_ICMP_ERROR) {
		if (w->source)
			delta = source_delta(p, w, six);
		if (!w->dsr)
			relay(f, w, delta, six);
	} else if (!transport_sum(f, w, passed, six)) {
		return 0;
	}
	if (w->dsr)
		return 1;
	if (six) {
		__be64 *address = w->source ? p->ip6->saddr : p->ip6->daddr;

		address[0] = w->to6.hi;
		address[1] = w->to6.lo;
		return 1;
	}
	if (w->source)
		p->ip->saddr = w->to;
	else
		p->ip->daddr = w->to;
	p->ip->check = csum_change(p->ip->check, delta);
	return 1;
}

/* retag makes the frame's VLAN tag that of its exit. False: no room. */
static __always_inline int retag(struct flow *f, __u16 vlan)
{
	struct packet *p = &f->packet;
	int tagged = p->l3 != sizeof(struct ethhdr);
	__be16 proto = f->packet.ip6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	struct ethhdr *eth;
	struct vlanhdr *tag;

	if (tagged && !vlan && bpf_xdp_adjust_head(f->ctx, VLAN_BYTES))
		return 0;
	if (!tagged && vlan && bpf_xdp_adjust_head(f->ctx, -VLAN_BYTES))
		return 0;
	p->data = (void *)(long)f->ctx->data;
	p->end = (void *)(long)f->ctx->data_end;
	eth = p->data;
	tag = (void *)(eth + 1);
	if ((void *)(tag + 1) > p->end)
		return 0;
	eth->h_proto = proto;
	if (vlan) {
		eth->h_proto = vlan & VLAN_SERVICE ? bpf_htons(ETH_P_8021AD) : bpf_htons(ETH_P_8021Q);
		tag->tci = bpf_htons(vlan & VLAN_ID);
		tag->proto = proto;
	}
	return 1;
}

/* transmit makes the rewritten frame a forwarded one: TTL, tag, MACs, exit. What is
 * passed to the kernel keeps its TTL, because the kernel takes one itself. */
static __always_inline int transmit(struct flow *f, const struct way *w, const int six)
{
	struct packet *p = &f->packet;
	const struct next_hop *n = w->hop;
	struct ethhdr *eth;

	if (!w->dsr) {
		if (six) {
			p->ip6->hop_limit--;
		} else {
			p->ip->ttl--;
			p->ip->check = csum_change(p->ip->check, CSUM_DELTA_TTL);
		}
	}
	if ((n->vlan || p->l3 != sizeof(*eth)) && !retag(f, n->vlan))
		return 0;
	eth = p->data;
	if ((void *)(eth + 1) > p->end)
		return 0;
	*(__u64 *)eth->h_dest = *(const __u64 *)n->dmac; /* both addresses, in two words */
	*(__u32 *)(eth->h_source + 2) = *(const __u32 *)(n->smac + 2);
	f->ifindex = n->ifindex;
	f->action = XDP_REDIRECT;
	if (n->ifindex == f->ctx->ingress_ifindex && f->in->flags & INTERFACE_XDP_TX)
		f->action = XDP_TX;
	return 1;
}

/* may_leave: can the exit send this frame? */
static __always_inline int may_leave(const struct flow *f, const struct way *w)
{
	__u8 flags = w->hop->flags;

	return flags & INTERFACE_TRANSMIT && (!f->packet.several || flags & INTERFACE_TRANSMIT_SG);
}

/* too_big: larger than the next hop's MTU. */
static __always_inline __u32 too_big(struct flow *f, const struct way *w, __u32 mtu, const int six)
{
	if (!six && !w->dsr && !(f->packet.ip->frag_off & bpf_htons(IP_DF)))
		return PASS_MUST_FRAGMENT;
	return answer(f, mtu, w, six);
}

/* count_way counts what goes to a backend or comes from it. */
static __always_inline void count_way(const struct flow *f, const struct way *w)
{
	struct count *c = w->source ? &w->state->out : &w->state->in;

	if (f->dry)
		return;
	c->packets++;
	c->bytes += f->bytes;
}

/* leave takes a packet whose fate is decided to its next hop. */
static __always_inline __u32 leave(struct flow *f, const struct way *w, __u32 reason, const int six)
{
	struct packet *p = &f->packet;
	__u32 blocked = 0, mtu = 0;
	__u8 left = six ? p->ip6->hop_limit : p->ip->ttl;

	if (left <= 1 && !w->dsr)
		return answer(f, 0, w, six);
	if (!next_hop_fresh(f, w, six)) {
		blocked = obstacle(next_hop_ask(f, w, &mtu, six), w);
		if (blocked == DROP_NO_ROUTE)
			return done(f, XDP_DROP, blocked);
		if (blocked == PASS_NOT_FORWARDED)
			return done(f, XDP_PASS, blocked); /* as it came */
	}
	if (w->dsr && !(w->hop->flags & HOP_DIRECT))
		return done(f, XDP_DROP, DROP_NO_ROUTE);
	if (blocked == DROP_NO_NEIGHBOUR)
		return done(f, XDP_DROP, blocked);
	if (!blocked) {
		blocked = may_leave(f, w) ? 0 : PASS_CANNOT_TRANSMIT;
		mtu = w->hop->mtu;
		if (p->total > mtu)
			blocked = DROP_TOO_BIG;
	}
	if (blocked == DROP_TOO_BIG) {
		blocked = too_big(f, w, mtu, six);
		if (blocked != PASS_MUST_FRAGMENT)
			return blocked;
	}
	if (!rewrite(f, w, blocked && !w->dsr, six))
		return done(f, XDP_DROP, DROP_PARTIAL_SUM);
	if (blocked && w->dsr)
		return done(f, XDP_DROP, DROP_NO_ROUTE);
	if (blocked) {
		count_way(f, w);
		return done(f, XDP_PASS, blocked);
	}
	if (!transmit(f, w, six))
		return done(f, XDP_DROP, DROP_TABLE);
	count_way(f, w);
	return reason;
}

/* forward is leave, from a clean start: what is known of pointers on one path into it
 * need not be kept apart from the others. */
static __always_inline __u32 forward(struct flow *f, const struct way *w, __u32 reason, const int six)
{
	struct packet *p = &f->packet;

	if (!w->hop || !w->state)
		return done(f, XDP_DROP, DROP_TABLE);
	p->data = (void *)(long)f->ctx->data;
	p->end = (void *)(long)f->ctx->data_end;
	if (six) {
		p->ip6 = at(p, p->l3, sizeof(*p->ip6));
		if (!p->ip6)
			return done(f, XDP_DROP, DROP_TABLE);
	} else {
		p->ip = at(p, p->l3, sizeof(*p->ip));
		if (!p->ip)
			return done(f, XDP_DROP, DROP_TABLE);
	}
	return leave(f, w, reason, six);
}
