/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors about what we forward: whom they are about, and their rewriting
 * inside and out. RFC 792, RFC 4443; RFC 5508 section 4.2 says the same of NATs. */
#pragma once
#include "csum.h"
#include "verdict.h"

static __always_inline int is_icmp_error(const struct packet *p, const __u8 *icmp, const int six)
{
	if (six)
		return p->protocol == IPPROTO_ICMPV6 && icmp[0] >= 1 && icmp[0] <= ICMP6_LAST_ERROR;
	return p->protocol == IPPROTO_ICMP && (icmp[0] == ICMP_DEST_UNREACH || icmp[0] == ICMP_TIME_EXCEEDED ||
					       icmp[0] == ICMP_PARAMETER_PROBLEM);
}

/* quoted_room: are the len bytes at off part of the packet? at asks the frame. */
static __always_inline void *quoted_at(const struct packet *p, __u32 off, __u32 len)
{
	return off + len > p->l4 + p->l4_bytes ? 0 : at(p, off, len);
}

/* quote_read finds the quoted packet of an ICMP error. False: it is none. */
static __always_inline int quote_read(const struct packet *p, struct service *s, const int six)
{
	__u8 *icmp = quoted_at(p, p->l4, ICMP_HEADER_BYTES);

	if (p->broken || is_fragment(p) || !icmp || !is_icmp_error(p, icmp, six))
		return 0;
	s->quoted = p->l4 + ICMP_HEADER_BYTES;
	if (six) {
		struct ipv6hdr *q = quoted_at(p, s->quoted, sizeof(*q));
		__u8 *fragment;

		if (!q || q->version != 6)
			return 0;
		s->quoted_protocol = q->nexthdr;
		s->quoted_later = 0;
		s->quoted_l4 = s->quoted + sizeof(*q);
		if (q->nexthdr == IPPROTO_FRAGMENT) {
			fragment = quoted_at(p, s->quoted_l4, 8);
			if (!fragment)
				return 0;
			s->quoted_protocol = fragment[0];
			s->quoted_later = (bpf_ntohs(*(__be16 *)(fragment + 2)) & IP6_OFFSET) != 0;
			s->quoted_l4 += 8;
		}
	} else {
		struct iphdr *q = quoted_at(p, s->quoted, sizeof(*q));

		if (!q || q->version != 4 || q->ihl < 5)
			return 0;
		s->quoted_protocol = q->protocol;
		s->quoted_later = (q->frag_off & bpf_htons(IP_OFFSET)) != 0;
		s->quoted_l4 = s->quoted + q->ihl * 4;
	}
	return 1;
}

/* quote_ours: is the quoted packet of a service of ours? source: the server's side
 * is the quoted source. */
static __always_inline int quote_ours(const struct packet *p, const struct service *s, int source, int passthrough)
{
	__be16 *ports, port;

	if (s->quoted_protocol == IPPROTO_ESP)
		return 1;
	if (s->quoted_protocol != IPPROTO_UDP && (s->quoted_protocol != IPPROTO_TCP || !passthrough))
		return 0;
	if (s->quoted_later)
		return 1;
	ports = quoted_at(p, s->quoted_l4, 4);
	if (!ports)
		return 0;
	port = source ? ports[0] : ports[1];
	return s->quoted_protocol == IPPROTO_TCP ? port == bpf_htons(PORT_SSTP) : is_ike_port(port);
}

/* quotes_server: does an ICMP error quote a packet of a service of ours, inbound one
 * that came from the error's own destination, the VIP; else one that went to its
 * source, the server? */
static __always_inline int quotes_server(struct flow *f, const int inbound, __u32 flags, const int six)
{
	struct packet *p = &f->packet;
	struct ipv6hdr *q6;
	struct iphdr *q4;

	if (f->service.kind != KIND_OTHER || !quote_read(p, &f->service, six))
		return 0;
	if (six) {
		const __be64 *quoted, *own = inbound ? p->ip6->daddr : p->ip6->saddr;

		q6 = at(p, f->service.quoted, sizeof(*q6));
		if (!q6)
			return 0;
		quoted = inbound ? q6->saddr : q6->daddr;
		if (quoted[0] != own[0] || quoted[1] != own[1])
			return 0;
	} else {
		q4 = at(p, f->service.quoted, sizeof(*q4));
		if (!q4 || (inbound ? q4->saddr : q4->daddr) != (inbound ? p->ip->daddr : p->ip->saddr))
			return 0;
	}
	return quote_ours(p, &f->service, inbound, flags & PASSTHROUGH);
}

static __always_inline void quote_classify(struct service *s)
{
	s->kind = KIND_ICMP_ERROR;
	s->class = s->quoted_protocol == IPPROTO_TCP ? CLASS_TCP : CLASS_IKE;
}

/* quoted_sum mends the quoted UDP or TCP sum and gives what that adds to the ICMP
 * sum's delta. */
static __always_inline __u32 quoted_sum(const struct packet *p, const struct relay *r)
{
	__u32 off = r->quoted_l4 + (r->protocol == IPPROTO_TCP ? TCP_CHECK_OFFSET : 6);
	__u16 *check, old;

	if (r->later || r->protocol == IPPROTO_ESP || off + 2 > r->end)
		return 0;
	check = at(p, off, 2);
	if (!check || (r->protocol == IPPROTO_UDP && !*check))
		return 0;
	old = *check;
	*check = csum_change(old, r->delta);
	if (r->protocol == IPPROTO_UDP && !*check)
		*check = 0xffff;
	return (__u16)~old + *check;
}

/* relay_write rewrites the quoted packet and the ICMP sum; the outer address is the
 * caller's. Global: the rare path. */
__noinline int relay_write(struct xdp_md *ctx, struct relay *r)
{
	struct packet p = {.data = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end};
	__u16 *check, old;
	struct ipv6hdr *q6;
	struct iphdr *q;
	__u32 sum;

	if (!r)
		return 0;
	sum = r->delta;
	if (r->six) {
		q6 = at(&p, r->quoted, sizeof(*q6));
		if (!q6)
			return 0; /* cannot be: quote_read saw it */
		if (r->source) {
			q6->saddr[0] = r->to.hi;
			q6->saddr[1] = r->to.lo;
		} else {
			q6->daddr[0] = r->to.hi;
			q6->daddr[1] = r->to.lo;
		}
		sum += r->outer; /* the pseudo-header */
	} else {
		q = at(&p, r->quoted, sizeof(*q));
		if (!q)
			return 0;
		old = q->check;
		q->check = csum_change(old, r->delta);
		sum += (__u16)~old + q->check;
		if (r->source)
			q->saddr = r->to.hi;
		else
			q->daddr = r->to.hi;
	}
	sum += quoted_sum(&p, r);
	check = at(&p, r->l4 + 2, 2);
	if (check)
		*check = csum_change(*check, sum);
	return 0;
}

/* relay prepares relay_write. */
static __always_inline void relay(struct flow *f, const struct way *w, __u32 outer, const int six)
{
	const struct packet *p = &f->packet;
	const struct service *s = &f->service;
	struct scratch *room = scratch_here();

	if (!room)
		return;
	room->relay = (struct relay){
		.l4 = p->l4, .end = p->l4 + p->l4_bytes, .quoted = s->quoted, .quoted_l4 = s->quoted_l4,
		.protocol = s->quoted_protocol, .later = s->quoted_later, .source = !w->source, .six = six,
		.delta = w->delta, .outer = outer};
	if (six)
		room->relay.to = w->to6;
	else
		room->relay.to.hi = w->to;
	relay_write(f->ctx, &room->relay);
}
