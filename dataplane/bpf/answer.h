/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors of our own: time exceeded and too big. They quote the packet as it
 * came, before anything was rewritten: the kernel would quote the server's
 * address, and answer the wrong host. */
#pragma once
#include "verdict.h"

static __always_inline __u16 fold64(__s64 sum)
{
	__u32 s = (__u32)sum;

	s = (s & 0xffff) + (s >> 16);
	return (s & 0xffff) + (s >> 16);
}

/* headers4 and headers6 write the IP and ICMP headers in front of quote bytes
 * whose sum is given. */
static __always_inline void headers4(__u32 *h, const struct answer *a, __u32 quote, __s64 sum)
{
	struct iphdr *ip = (void *)h;
	__u8 *icmp = (__u8 *)(h + 5);

	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(sizeof(*ip) + ICMP_HEADER_BYTES + quote);
	ip->frag_off = bpf_htons(IP_DF);
	ip->ttl = 64;
	ip->protocol = IPPROTO_ICMP;
	ip->saddr = a->source.hi;
	ip->daddr = a->destination.hi;
	ip->check = ~fold64(bpf_csum_diff(0, 0, h, sizeof(*ip), 0));
	icmp[0] = a->mtu ? ICMP_DEST_UNREACH : ICMP_TIME_EXCEEDED;
	icmp[1] = a->mtu ? ICMP_FRAG_NEEDED : 0;
	*(__be16 *)(icmp + 6) = bpf_htons(a->mtu);
	*(__u16 *)(icmp + 2) = ~fold64(bpf_csum_diff(0, 0, h + 5, ICMP_HEADER_BYTES, sum));
}

static __always_inline void headers6(__u32 *h, const struct answer *a, __u32 quote, __s64 sum)
{
	struct ipv6hdr *ip = (void *)h;
	__u8 *icmp = (__u8 *)(h + 10);
	__u32 rest = bpf_htons(ICMP_HEADER_BYTES + quote) + bpf_htons(IPPROTO_ICMPV6);

	ip->version = 6;
	ip->payload_len = bpf_htons(ICMP_HEADER_BYTES + quote);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = 64;
	ip->saddr[0] = a->source.hi;
	ip->saddr[1] = a->source.lo;
	ip->daddr[0] = a->destination.hi;
	ip->daddr[1] = a->destination.lo;
	icmp[0] = a->mtu ? ICMP6_PACKET_TOO_BIG : ICMP6_TIME_EXCEEDED;
	*(__be32 *)(icmp + 4) = bpf_htonl(a->mtu);
	sum = bpf_csum_diff(0, 0, h + 2, 32, sum); /* both addresses */
	sum = fold64(bpf_csum_diff(0, 0, h + 10, ICMP_HEADER_BYTES, sum));
	*(__u16 *)(icmp + 2) = ~fold64(sum + rest);
}

/* quote_sum adds up what will be quoted; negative: it cannot be read. */
static __always_inline __s64 quote_sum(struct xdp_md *ctx, __u32 l3, __u32 quote)
{
	struct scratch *room = scratch_here();

	seen_anew(quote);
	if (!room || quote < 4 || quote > MAX_QUOTE)
		return -1;
	if (bpf_xdp_load_bytes(ctx, l3, room->quote, quote))
		return -1;
	quote &= ~3U;
	seen_anew(quote);
	return quote > MAX_QUOTE ? -1 : bpf_csum_diff(0, 0, (__be32 *)room->quote, quote, 0);
}

/* answer_write turns the frame into the answer. Not inlined: it is the rare path,
 * and all its access goes by helpers. 0 = done. */
__noinline int answer_write(struct xdp_md *ctx, struct answer *a)
{
	const __u32 link_bytes = sizeof(struct ethhdr) + VLAN_BYTES;
	struct scratch *s = scratch_here();
	__u32 quote, bytes, room, *h;
	__u8 mac, *link;
	__s64 sum;

	if (!a || !s)
		return -1;
	h = s->headers;
	link = s->link;
	__builtin_memset(h, 0, sizeof(s->headers));
	quote = a->total < MAX_QUOTE ? a->total & ~3U : MAX_QUOTE;
	room = a->six ? 48 : 28;
	sum = quote_sum(ctx, a->l3, quote);
	if (sum < 0 || bpf_xdp_load_bytes(ctx, 0, link, link_bytes))
		return -1;
#pragma unroll
	for (int i = 0; i < 6; i++) {
		mac = link[i];
		link[i] = link[i + 6];
		link[i + 6] = mac;
	}
	if (a->six)
		headers6(h, a, quote, sum);
	else
		headers4(h, a, quote, sum);
	bytes = bpf_xdp_get_buff_len(ctx);
	if (bpf_xdp_adjust_head(ctx, -(int)room))
		return -1;
	if (bpf_xdp_adjust_tail(ctx, (int)(a->l3 + quote) - (int)bytes))
		return -1;
	if (a->six ? bpf_xdp_store_bytes(ctx, a->l3, h, 48) : bpf_xdp_store_bytes(ctx, a->l3, h, 28))
		return -1;
	if (a->l3 == sizeof(struct ethhdr))
		return bpf_xdp_store_bytes(ctx, 0, link, sizeof(struct ethhdr));
	return bpf_xdp_store_bytes(ctx, 0, link, link_bytes);
}

/* answerable: RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e). */
static __always_inline int answerable(const struct flow *f, const int six)
{
	const struct packet *p = &f->packet;
	__u8 first;

	if (f->service.kind == KIND_ICMP_ERROR || !(f->in->flags & INTERFACE_TRANSMIT))
		return 0;
	if (six) {
		first = p->ip6->saddr[0];
		return first != 0xff && (p->ip6->saddr[0] || p->ip6->saddr[1] & ~bpf_cpu_to_be64(1));
	}
	first = p->ip->saddr;
	return !p->offset && first && first != 127 && first < 224;
}

/* answer sends an ICMP error back where the frame came from; mtu 0: time exceeded.
 * The VIP is the source. */
static __always_inline __u32 answer(struct flow *f, __u32 mtu, const struct way *w, const int six)
{
	struct packet *p = &f->packet;
	struct scratch *room = scratch_here();
	__u32 drop = mtu ? DROP_TOO_BIG : DROP_TTL, kind = w->source * 2 + !!mtu;
	struct allowance *left = bpf_map_lookup_elem(&answers, &kind);
	struct events *e = events_here();

	if (!left || !e || !room || !answerable(f, six))
		return done(f, XDP_DROP, drop);
	if (!f->dry && !allowed(left, f->jiffies, answers_per_second)) {
		e->answers_withheld++;
		return done(f, XDP_DROP, drop);
	}
	room->answer = (struct answer){.l3 = p->l3, .total = p->total, .mtu = mtu, .six = six};
	if (six) {
		room->answer.source = w->source ? w->to6 : (struct in6){p->ip6->daddr[0], p->ip6->daddr[1]};
		room->answer.destination.hi = p->ip6->saddr[0];
		room->answer.destination.lo = p->ip6->saddr[1];
	} else {
		room->answer.source.hi = w->source ? w->to : p->ip->daddr;
		room->answer.destination.hi = p->ip->saddr;
	}
	if (answer_write(f->ctx, &room->answer))
		return done(f, XDP_DROP, drop);
	f->ifindex = f->in->lower;
	f->action = f->in->flags & INTERFACE_XDP_TX ? XDP_TX : XDP_REDIRECT;
	return mtu ? ANSWER_TOO_BIG : ANSWER_EXPIRED;
}
