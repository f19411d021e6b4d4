//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* vpnlb's packet path, IPv4. Order: own MAC, parse, destination is a VIP, source
 * is a backend, pass. dataplane/model decides the same in Go; tests compare. */
#include "evidence.h"
#include "rewrite.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* inbound: from a client to a VIP. */
static __always_inline __u32 inbound(struct flow *f, const struct vip *vip)
{
	struct iphdr *ip = f->packet.ip;
	__u32 reason = FORWARD_AFFINITY, slot;
	struct record r = {};
	struct backend *b;
	struct way w = {};

	switch (f->service.kind) {
	case KIND_OTHER:
		return done(f, XDP_PASS, PASS_LOCAL_VIP);
	case KIND_MALFORMED:
		return done(f, XDP_DROP, DROP_MALFORMED);
	case KIND_NOT_IKEV2:
		return done(f, XDP_DROP, DROP_NOT_IKEV2);
	case KIND_ICMP_ERROR:
		return done(f, XDP_DROP, DROP_ICMP_ERROR);
	}
	record_of(f, &r, ip->saddr, vip->index);
	slot = r.slot;
	b = r.backend;
	if (!r.entry || (r.stance == STANCE_LEAVE && opening(f))) {
		reason = r.entry ? FORWARD_REOPENED : FORWARD_MAGLEV;
		slot = maglev_slot(f, vip->index, ip->saddr);
		if (!slot)
			return done(f, XDP_DROP, DROP_NO_BACKEND);
		b = backend_at(f, slot);
	} else if (r.client_tick != tick_of(f->jiffies)) {
		r.entry->client_tick = tick_of(f->jiffies);
	}
	w.hop = bpf_map_lookup_elem(&next_hop_by_slot, &slot);
	if (!b || !b->address || !w.hop)
		return done(f, XDP_DROP, DROP_TABLE);
	w.source = ip->saddr;
	w.destination = w.to = b->address;
	w.address = &ip->daddr;
	w.delta = b->inbound_delta;
	return forward(f, &w, reason);
}

/* not_return_has: is the destination one of a member, a VIP, another backend, a
 * gateway, an inside prefix? Then the packet is no reply to a client. */
static __always_inline int not_return_has(struct flow *f, __be32 address)
{
	struct not_return_key key = {.prefixlen = 64, .selector = f->selector, .address = address};

	return bpf_map_lookup_elem(&not_return, &key) != 0;
}

/* follow remembers what a first fragment was and tells a later one; 0 = the
 * first was not seen. */
static __always_inline __u32 follow(struct flow *f)
{
	struct iphdr *ip = f->packet.ip;
	struct fragment_key key = {
		.source = ip->saddr, .destination = ip->daddr, .id = ip->id, .protocol = ip->protocol};
	__u32 *was, is = FRAGMENT_RETURN;

	if (f->service.kind == KIND_LATER) {
		was = bpf_map_lookup_elem(&fragments, &key);
		return was ? *was : 0;
	}
	if (f->service.kind == KIND_OTHER)
		is = FRAGMENT_OTHER;
	else if (f->service.kind != KIND_IKE && f->service.kind != KIND_ESP && f->service.kind != KIND_KEEPALIVE)
		return is;
	if (f->packet.fragment && !f->packet.offset && (ip->protocol == IPPROTO_UDP || ip->protocol == IPPROTO_ESP))
		bpf_map_update_elem(&fragments, &key, &is, BPF_ANY);
	return is;
}

/* note_reply keeps what a reply tells: the server's tick, its counters, and the
 * proof that the client has a session there. */
static __always_inline void note_reply(struct flow *f, const struct backend *b, __u32 slot)
{
	__be32 client = f->packet.ip->daddr;
	struct record r = {};
	struct proof proof;

	record_of(f, &r, client, b->vip);
	if (r.entry && r.slot == slot && r.server_tick != tick_of(f->jiffies))
		r.entry->server_tick = tick_of(f->jiffies);
	if (f->service.kind == KIND_LATER)
		return;
	prove(&f->service, &proof);
	if (!proof.level)
		return;
	count_return(slot, &proof);
	learn(f, &r, &proof, slot, b, client);
}

/* outbound: from a backend. */
static __always_inline __u32 outbound(struct flow *f, __u32 slot)
{
	struct iphdr *ip = f->packet.ip;
	struct backend *b = backend_at(f, slot);
	__u32 place, was, reason = FORWARD_RETURN;
	struct way w = {};

	was = follow(f);
	if (was == FRAGMENT_OTHER)
		return done(f, XDP_PASS, PASS_BACKEND_OTHER);
	place = (ip->daddr * 0x9e3779b1U) >> 20; /* 12 bits */
	w.hop = bpf_map_lookup_elem(&next_hop_by_client, &place);
	if (!b || !w.hop)
		return done(f, XDP_DROP, DROP_TABLE);
	w.source = w.shared = w.to = b->vip_address;
	w.destination = ip->daddr;
	w.address = &ip->saddr;
	w.delta = b->return_delta;
	/* A hop cached under these rules was a client's then: no need to ask the
	 * trie again. */
	if (!next_hop_fresh(f, &w) || w.hop->rules != f->rules->serial) {
		if (not_return_has(f, ip->daddr))
			return done(f, XDP_PASS, PASS_NOT_RETURN);
		if (next_hop_fresh(f, &w))
			w.hop->rules = f->rules->serial;
	}
	switch (f->service.kind) {
	case KIND_MALFORMED:
		return done(f, XDP_DROP, DROP_MALFORMED);
	case KIND_NOT_IKEV2:
		return done(f, XDP_DROP, DROP_NOT_IKEV2);
	case KIND_ICMP_ERROR:
		return done(f, XDP_DROP, DROP_ICMP_ERROR);
	case KIND_LATER:
		reason = was ? FORWARD_RETURN_FRAGMENT : FORWARD_RETURN_UNKNOWN;
	}
	note_reply(f, b, slot);
	return forward(f, &w, reason);
}

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a, *y = (const __u16 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

/* decide names the packet's fate. */
static __always_inline __u32 decide(struct flow *f)
{
	struct packet *p = &f->packet;
	struct ethhdr *eth = p->data;
	struct vip *vip;
	__u32 slot;

	f->action = XDP_PASS;
	if ((void *)(eth + 1) > p->end)
		return PASS_OTHER;
	if (f->in->ifindex != f->ctx->ingress_ifindex || !same_mac(eth->h_dest, f->in->mac))
		return PASS_FOREIGN_MAC;
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return PASS_NOT_IP;
	p->ip = (void *)(eth + 1);
	if ((void *)(p->ip + 1) > p->end || p->ip->version != 4)
		return PASS_OTHER;
	p->protocol = p->ip->protocol;
	p->offset = bpf_ntohs(p->ip->frag_off) & IP_OFFSET;
	p->fragment = (p->ip->frag_off & bpf_htons(IP_OFFSET | IP_MF)) != 0;
	slot = server_slot(f, p->ip->saddr);
	vip = vip_of(f->rules, p->ip->daddr);
	if (!vip && !slot)
		return PASS_OTHER;
	if (!ip_lengths(p))
		return done(f, XDP_DROP, DROP_MALFORMED);
	if (vip && slot)
		return done(f, XDP_DROP, DROP_HAIRPIN);
	classify(p, &f->service, vip != 0);
	return vip ? inbound(f, vip) : outbound(f, slot);
}

/* prepare finds the tables in force. They are arrays and always there. */
static __always_inline int prepare(struct flow *f)
{
	__u32 zero = 0, place = f->ctx->ingress_ifindex % INTERFACES;

	f->packet.data = (void *)(long)f->ctx->data;
	f->packet.end = (void *)(long)f->ctx->data_end;
	f->jiffies = bpf_jiffies64();
	f->control = bpf_map_lookup_elem(&plane_control, &zero);
	f->in = bpf_map_lookup_elem(&interfaces, &place);
	if (!f->control || !f->in)
		return 0;
	f->selector = *(volatile __u32 *)&f->control->selector & 1;
	f->rules = bpf_map_lookup_elem(&plane_rules, &f->selector);
	return f->rules != 0;
}

SEC("xdp")
int vpnlb(struct xdp_md *ctx)
{
	struct flow f = {.ctx = ctx, .action = XDP_PASS};
	__u32 reason = DROP_TABLE;
	struct count *c;

	if (prepare(&f))
		reason = decide(&f);
	/* The one exit: every packet is counted once. */
	c = bpf_map_lookup_elem(&counters, &reason);
	if (c) {
		c->packets++;
		c->bytes += f.packet.end - f.packet.data;
	}
	return f.action == XDP_REDIRECT ? bpf_redirect(f.ifindex, 0) : f.action;
}
