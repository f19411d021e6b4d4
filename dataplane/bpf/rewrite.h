/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Next hop and rewriting. */
#pragma once
#include "csum.h"
#include "verdict.h"

static __always_inline struct events *events_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&event_counters, &zero);
}

struct way {
	struct next_hop *hop;
	__be32 source; /* as the packet leaves */
	__be32 destination;
	__be32 shared;   /* what of the source the cached hop belongs to; 0 = any */
	__be32 *address; /* the one that is rewritten */
	__be32 to;
	__u32 delta;
};

static __always_inline int next_hop_fresh(const struct flow *f, const struct way *w)
{
	const struct next_hop *n = w->hop;

	return n->expires > f->jiffies && n->serial == *(volatile __u32 *)&f->control->next_hop_serial &&
	       n->destination == w->destination && n->source == w->shared;
}

/* next_hop_learn asks the FIB. The answer is kept for next_hop_jiffies or until
 * user space sees a change of routes, neighbours or links. The serial is read
 * before the question, so that a change meanwhile makes the answer stale. */
static __noinline int next_hop_learn(struct xdp_md *ctx, struct next_hop *n, struct bpf_fib_lookup *q,
				     __u32 serial, __u64 jiffies)
{
	struct interface *out;
	__u32 place;
	long rc;

	if (!n || !q)
		return BPF_FIB_LKUP_RET_BLACKHOLE;
	n->expires = 0;
	rc = bpf_fib_lookup(ctx, q, sizeof(*q), 0);
	if (rc != BPF_FIB_LKUP_RET_SUCCESS)
		return rc < 0 ? BPF_FIB_LKUP_RET_BLACKHOLE : rc;
	place = q->ifindex % INTERFACES;
	out = bpf_map_lookup_elem(&interfaces, &place);
	n->flags = out && out->ifindex == q->ifindex ? out->flags : 0;
	n->ifindex = q->ifindex;
	n->mtu = q->tot_len;
	__builtin_memcpy(n->dmac, q->dmac, 6);
	__builtin_memcpy(n->smac, q->smac, 6);
	n->serial = serial;
	n->expires = jiffies + next_hop_jiffies;
	return BPF_FIB_LKUP_RET_SUCCESS;
}

static __always_inline int next_hop_ask(struct flow *f, const struct way *w)
{
	struct events *e = events_here();
	struct bpf_fib_lookup q = {
		.family = AF_INET,
		.l4_protocol = f->packet.protocol,
		.tot_len = bpf_ntohs(f->packet.ip->tot_len),
		.ifindex = f->ctx->ingress_ifindex,
		.ipv4_src = w->source,
		.ipv4_dst = w->destination,
	};

	if (e)
		e->next_hop_miss++;
	w->hop->source = w->shared;
	w->hop->destination = w->destination;
	w->hop->rules = f->rules->serial;
	return next_hop_learn(f->ctx, w->hop, &q, *(volatile __u32 *)&f->control->next_hop_serial, f->jiffies);
}

/* rewrite changes one address and the checksums. A frame that is passed to the
 * kernel (blocked) keeps its mark, so a partial sum is completed there and must
 * stay the pseudo-header's; one that is redirected loses the mark. */
static __always_inline void rewrite(struct flow *f, const struct way *w, __u32 blocked)
{
	struct packet *p = &f->packet;
	struct udphdr *udp;

	if (p->protocol == IPPROTO_UDP && !p->offset) {
		udp = at(p, p->l4_offset, sizeof(*udp));
		if (udp && udp->check) {
			if (!(f->in->flags & INTERFACE_PARTIAL) || !csum_is_partial(p->ip, udp)) {
				__u16 check = csum_change(udp->check, w->delta);

				udp->check = check ? check : 0xffff;
			} else if (blocked) {
				udp->check = csum_fold(udp->check + w->delta);
			} else {
				struct events *e = events_here();

				udp->check = 0; /* legal in IPv4 only, RFC 768 */
				if (e)
					e->partial_repaired++;
			}
		}
	}
	*w->address = w->to;
	p->ip->check = csum_change(p->ip->check, w->delta);
}

/* transmit makes the rewritten frame a forwarded one: TTL, MACs, exit. What is
 * passed to the kernel keeps its TTL, because the kernel takes one itself. */
static __always_inline void transmit(struct flow *f, const struct next_hop *n)
{
	struct ethhdr *eth = f->packet.data;
	struct iphdr *ip = f->packet.ip;

	ip->ttl--;
	ip->check = csum_change(ip->check, CSUM_DELTA_TTL);
	__builtin_memcpy(eth->h_dest, n->dmac, 6);
	__builtin_memcpy(eth->h_source, n->smac, 6);
	f->ifindex = n->ifindex;
	f->action = XDP_REDIRECT;
	if (n->ifindex == f->ctx->ingress_ifindex && f->in->flags & INTERFACE_XDP_TX)
		f->action = XDP_TX;
}

/* obstacle turns what the FIB said of a packet into a reason; 0 = none. */
static __always_inline __u32 obstacle(int rc)
{
	switch (rc) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		return 0;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return DROP_TOO_BIG;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return PASS_NO_NEIGHBOUR;
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		return PASS_CANNOT_TRANSMIT;
	}
	return DROP_NO_ROUTE;
}

/* forward takes a packet whose fate is decided to its next hop. */
static __always_inline __u32 forward(struct flow *f, const struct way *w, __u32 reason)
{
	struct packet *p = &f->packet;
	struct next_hop *n = w->hop;
	__u32 blocked = 0;

	if (p->ip->ttl <= 1)
		return done(f, XDP_DROP, DROP_TTL);
	if (!next_hop_fresh(f, w)) {
		blocked = obstacle(next_hop_ask(f, w));
		if (blocked == DROP_NO_ROUTE || blocked == DROP_TOO_BIG)
			return done(f, XDP_DROP, blocked);
	} else if (bpf_ntohs(p->ip->tot_len) > n->mtu) {
		return done(f, XDP_DROP, DROP_TOO_BIG);
	}
	if (!blocked && !(n->flags & INTERFACE_TRANSMIT))
		blocked = PASS_CANNOT_TRANSMIT;
	rewrite(f, w, blocked);
	if (blocked)
		return done(f, XDP_PASS, blocked);
	transmit(f, n);
	return reason;
}
