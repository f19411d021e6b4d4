//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* vpnlb's packet path. Order: own MAC, VLAN, parse, destination is a VIP, source is
 * a backend, ICMP error about a packet to a backend, pass. dataplane/model decides
 * the same in Go and has the letter; tests compare. */
#include "inbound.h"
#include "outbound.h"
#include "trace.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* by_address: the packet's destination is no VIP. slot is its source's. */
static __always_inline __u32 by_address(struct flow *f, __u32 slot, struct way *w, const int six)
{
	struct packet *p = &f->packet;
	struct side from = {};

	if (slot && !backend_at(f, slot, &from, six))
		return done(f, XDP_DROP, DROP_TABLE);
	if (slot && !(from.flags & DSR)) {
		classify(p, &f->service, 0, from.flags & PASSTHROUGH);
		if (quotes_server(f, 0, from.flags, six))
			quote_classify(&f->service);
	} else {
		slot = p->protocol == (six ? IPPROTO_ICMPV6 : IPPROTO_ICMP) ? quoted_slot(f, &from, six) : 0;
		if (!slot)
			return PASS_OTHER;
		quote_classify(&f->service);
	}
	settle(p, &f->service);
	f->slot = slot;
	return outbound(f, &from, w, six);
}

static __always_inline __u32 decide4(struct flow *f, struct way *w)
{
	struct packet *p = &f->packet;
	struct who who = {};
	__u32 slot;
	int vip;

	p->ip6 = 0;
	p->ip = p->data + p->l3;
	if ((void *)(p->ip + 1) > p->end || p->ip->version != 4)
		return PASS_OTHER;
	p->protocol = p->ip->protocol;
	p->offset = (bpf_ntohs(p->ip->frag_off) & IP_OFFSET) * 8;
	p->more = (p->ip->frag_off & bpf_htons(IP_MF)) != 0;
	p->broken = 0;
	slot = server4_slot(f, p->ip->saddr);
	vip = vip4_of(f->rules, p->ip->daddr, &who);
	if (!vip && !slot && p->protocol != IPPROTO_ICMP)
		return PASS_OTHER;
	if (!ip4_lengths(p)) {
		struct side from = {};

		if (!vip && (!slot || !backend_at(f, slot, &from, 0) || from.flags & DSR))
			return PASS_OTHER;
		return done(f, XDP_DROP, DROP_MALFORMED);
	}
	if (!vip)
		return by_address(f, slot, w, 0);
	return slot ? done(f, XDP_DROP, DROP_HAIRPIN) : inbound(f, &who, w, 0);
}

static __always_inline __u32 decide6(struct flow *f, struct way *w)
{
	struct packet *p = &f->packet;
	struct who who = {};
	__u32 slot;
	int vip;

	p->ip = 0;
	p->ip6 = p->data + p->l3;
	if ((void *)(p->ip6 + 1) > p->end || p->ip6->version != 6)
		return PASS_OTHER;
	p->protocol = p->ip6->nexthdr;
	slot = server6_slot(f, p->ip6->saddr[0], p->ip6->saddr[1]);
	vip = vip6_of(f->rules, p->ip6->daddr[0], p->ip6->daddr[1], &who);
	/* An error of a stranger: behind extension headers, perhaps. */
	if (!vip && !slot && p->protocol != IPPROTO_ICMPV6 && !is_extension(p->protocol))
		return PASS_OTHER;
	if (!ip6_lengths(p)) {
		struct side from = {};

		if (!vip && (!slot || !backend_at(f, slot, &from, 1) || from.flags & DSR))
			return PASS_OTHER;
		return done(f, XDP_DROP, DROP_MALFORMED);
	}
	if (!vip)
		return by_address(f, slot, w, 1);
	return slot ? done(f, XDP_DROP, DROP_HAIRPIN) : inbound(f, &who, w, 1);
}

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a, *y = (const __u16 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

/* untag finds the VLAN device that a tagged frame belongs to; 0 = none of ours. */
static __always_inline struct interface *untag(struct flow *f, __be16 *proto)
{
	struct vlanhdr *tag = f->packet.data + sizeof(struct ethhdr);
	struct vlan_key key = {.lower = f->in->master};
	struct interface *in;
	__u32 *index, place, service;

	if ((void *)(tag + 1) > f->packet.end)
		return 0;
	key.vlan = bpf_ntohs(tag->tci) & VLAN_ID;
	service = *proto == bpf_htons(ETH_P_8021AD) ? VLAN_SERVICE : 0;
	*proto = tag->proto;
	f->packet.l3 = (sizeof(struct ethhdr) + VLAN_BYTES) ^ (f->packet.zero & 31);
	if (!key.vlan)
		return f->in; /* a priority and no VLAN, IEEE 802.1Q section 6.9 */
	key.vlan |= service;
	index = bpf_map_lookup_elem(&vlans, &key);
	if (!index)
		return 0;
	place = *index % INTERFACES;
	in = bpf_map_lookup_elem(&interfaces, &place);
	if (!in || in->ifindex != *index)
		return 0;
	return in;
}

/* decide names the packet's fate. */
static __always_inline __u32 decide(struct flow *f)
{
	struct packet *p = &f->packet;
	struct ethhdr *eth = p->data;
	struct way w;
	__u32 reason;
	__be16 proto;

	w.hop = 0;
	w.state = 0;
	w.source = w.dsr = w.shared = 0;
	f->action = XDP_PASS;
	if ((void *)(eth + 1) > p->end)
		return PASS_OTHER;
	if (f->in->ifindex != f->ctx->ingress_ifindex)
		return PASS_FOREIGN_MAC;
	p->l3 = sizeof(*eth) ^ (p->zero & 31);
	proto = eth->h_proto;
	if (proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD)) {
		struct interface *vlan = untag(f, &proto);

		if (!vlan)
			return PASS_NOT_IP;
		f->in = vlan;
	}
	if (!same_mac(eth->h_dest, f->in->mac))
		return PASS_FOREIGN_MAC;
	if (proto == bpf_htons(ETH_P_IP)) {
		reason = decide4(f, &w);
		return f->action == ACTION_FORWARD ? forward(f, &w, reason, 0) : reason;
	}
	if (proto == bpf_htons(ETH_P_IPV6)) {
		reason = decide6(f, &w);
		return f->action == ACTION_FORWARD ? forward(f, &w, reason, 1) : reason;
	}
	return PASS_NOT_IP;
}

/* prepare finds the tables in force. They are arrays and always there. */
static __always_inline int prepare(struct flow *f)
{
	__u32 zero = 0, place = f->ctx->ingress_ifindex % INTERFACES;

	f->packet.ctx = f->ctx;
	f->packet.data = (void *)(long)f->ctx->data;
	f->packet.end = (void *)(long)f->ctx->data_end;
	f->bytes = f->packet.end - f->packet.data;
	f->jiffies = bpf_jiffies64();
	f->packet.zero = f->jiffies >> 48;
	f->control = bpf_map_lookup_elem(&plane_control, &zero);
	f->in = bpf_map_lookup_elem(&interfaces, &place);
	if (!f->control || !f->in)
		return 0;
	f->selector = *(volatile __u32 *)&f->control->selector & 1;
	f->rules = bpf_map_lookup_elem(&plane_rules, &f->selector);
	return f->rules != 0;
}

/* run is what becomes of one frame; *reason says why. */
static __always_inline __u32 run(struct xdp_md *ctx, __u32 *reason, const int dry)
{
	struct flow f;
	struct count *c;

	/* Zeroing all of it would take as long as finding the client does. What is not named
	 * here is written on every path before it is read. */
	f.ctx = ctx;
	f.action = XDP_PASS;
	f.dry = dry;
	f.control = 0;
	f.slot = 0;
	f.ifindex = 0;
	f.packet.several = 0;
	f.packet.total = 0;
	*reason = DROP_TABLE;
	if (prepare(&f))
		*reason = decide(&f);
	if (dry)
		return f.action;
	if (f.packet.several)
		f.bytes = f.packet.l3 + f.packet.total;
	/* The one exit: every packet is counted once. */
	c = bpf_map_lookup_elem(&counters, reason);
	if (c) {
		c->packets++;
		c->bytes += f.bytes;
	}
	if (f.control && f.control->tracing)
		trace(ctx, f.jiffies, *reason, f.slot, (__u64)f.ifindex << 32 | f.action);
	return f.action == XDP_REDIRECT ? bpf_redirect(f.ifindex, 0) : f.action;
}

SEC("xdp.frags")
int vpnlb(struct xdp_md *ctx)
{
	__u32 reason;

	return run(ctx, &reason, 0);
}

/* vpnlb_check decides the same and leaves no trace in any map: the self-check. It
 * gives the reason and, in the second byte, the action. */
SEC("xdp.frags")
int vpnlb_check(struct xdp_md *ctx)
{
	__u32 reason, action = run(ctx, &reason, 1);

	return reason | action << 8;
}

#include "bench.h"
