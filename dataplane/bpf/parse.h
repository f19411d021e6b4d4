/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From bytes to what a packet is for us. Nothing here reads a map. Functions that
 * take "six" are compiled twice, for IPv4 and for IPv6. */
#pragma once
#include "consts.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct packet {
	/* Always 0, which the verifier does not know: jiffies never get that far. Numbers
	 * that are constants on one path are mixed with it, so that the verifier need not
	 * follow the rest of the program once for each. */
	__u32 zero;
	struct xdp_md *ctx;
	void *data;
	void *end;
	struct iphdr *ip;    /* either this */
	struct ipv6hdr *ip6; /* or this */
	__u32 l3;            /* offset of the IP header in the frame */
	__u32 l4;            /* offset of what follows it and extension headers */
	__u32 l4_bytes;      /* what the IP header says is there */
	__u32 total;         /* bytes of the IP packet */
	__u32 offset;        /* fragment offset, bytes; 0 = first or whole */
	__be32 id;           /* of the datagram that it is a fragment of */
	__u8 more;           /* fragments to come */
	__u8 protocol;
	__u8 broken; /* extension headers that cannot be read */
	__u8 several; /* of its frame's buffers: only the first is looked at */
};

static __always_inline int is_fragment(const struct packet *p)
{
	return p->more || p->offset;
}

/* What a packet to or from a server's port turns out to be. */
enum kind {
	KIND_OTHER,     /* no service of ours */
	KIND_MALFORMED, /* a service's port, but too short */
	KIND_NOT_IKEV2,
	KIND_IKE,
	KIND_ESP,       /* bare, or in UDP */
	KIND_KEEPALIVE, /* RFC 3948 section 2.3 */
	KIND_TCP,
	KIND_LATER,     /* non-first fragment of UDP, ESP or TCP */
	KIND_ICMP_ERROR,
};

struct service {
	__u32 kind;
	__u32 class;
	__u32 payload_bytes; /* of UDP or ESP, or of TCP; 0 where they prove nothing */
	__u8 on_4500;
	__u8 exchange;
	__u32 ike;       /* offset of the IKE header in the frame */
	__u32 ike_bytes; /* of the message, in all pieces of its datagram */
	__u32 quoted;    /* ICMP: offset of the quoted IP header in the frame */
	__u32 quoted_l4; /* of what follows it there */
	__u8 quoted_protocol;
	__u8 quoted_later;
};

/* at gives len bytes at off, if they are inside the frame's first buffer and in
 * its first 4 KiB; the comparison stands here so that every access has one. */
static __always_inline void *at(const struct packet *p, __u32 off, __u32 len)
{
	void *start;

	if (off > 0xfff)
		return 0;
	/* Says the same to a verifier before Linux 6.9, which forgets the bound of what was
	 * on the stack. */
	asm volatile("%0 &= 0xfff" : "+r"(off));
	start = p->data + off;
	return start + len > p->end ? 0 : start;
}

/* holds compares what the IP header says with the frame, which may go on in more
 * buffers. */
static __always_inline int holds(struct packet *p)
{
	__u32 frame = p->end - p->data;

	p->several = p->zero & 1;
	if (p->l3 + p->total <= frame)
		return 1;
	p->several = (p->zero & 1) ^ 1;
	return p->l3 + p->total <= bpf_xdp_get_buff_len(p->ctx);
}

/* ip4_lengths checks what the IP header says of itself against the frame and
 * fills in where the payload lies. False: they contradict. */
static __always_inline int ip4_lengths(struct packet *p)
{
	__u32 header = p->ip->ihl * 4;

	p->total = bpf_ntohs(p->ip->tot_len);
	if (header < sizeof(struct iphdr) || p->total < header || !holds(p))
		return 0;
	p->l4 = p->l3 + header;
	p->l4_bytes = p->total - header;
	return 1;
}

/* What ip6_walk gives, lowest bit first: offset of what follows the headers 12,
 * fragment header's offset 12 (0 = none), protocol 8, broken 1. */
#define WALK_L4(w) ((__u32)(w) & 0xfff)
#define WALK_FRAGMENT(w) ((__u32)((w) >> 12) & 0xfff)
#define WALK_PROTOCOL(w) ((__u32)((w) >> 24) & 0xff)
#define WALK_BROKEN (1ULL << 32)

static __always_inline int is_extension(__u32 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS || next == IPPROTO_FRAGMENT;
}

/* ip6_walk goes over the extension headers, RFC 8200 section 4, from off, which the
 * packet ends before end. Broken: there are too many, or they do not fit in. A
 * global function, so that the verifier walks once and not on every path. */
__noinline __u64 ip6_walk(struct xdp_md *ctx, __u32 off, __u32 end, __u32 next)
{
	struct packet p = {.data = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end};
	__u32 bytes, fragment = 0;
	__u8 *h;

	for (int i = 0; i < IP6_HEADERS && is_extension(next); i++) {
		h = at(&p, off, 8);
		if (!h || off + 8 > end)
			return WALK_BROKEN;
		bytes = 8;
		if (next == IPPROTO_FRAGMENT) {
			if (fragment)
				return WALK_BROKEN;
			fragment = off;
		} else {
			bytes = (h[1] + 1) * 8;
		}
		if (off + bytes > end || off + bytes > 0xfff)
			return WALK_BROKEN;
		next = h[0];
		off += bytes;
		if (fragment == off - 8 && *(__be16 *)(h + 2) & bpf_htons(IP6_OFFSET))
			return off | fragment << 12 | (__u64)next << 24; /* the rest is in the first one */
	}
	return is_extension(next) ? WALK_BROKEN : off | fragment << 12 | (__u64)next << 24;
}

/* ip6_headers takes over what ip6_walk found. */
static __always_inline void ip6_headers(struct packet *p)
{
	__u64 walk = ip6_walk(p->ctx, p->l4, p->l3 + p->total, p->protocol);
	__u32 fragment = WALK_FRAGMENT(walk);
	__be16 *h;

	p->broken = (walk >> 32) & 1;
	p->offset = p->zero & IP6_OFFSET;
	p->more = p->zero & IP6_MF;
	p->id = p->zero;
	if (p->broken)
		return;
	p->protocol = WALK_PROTOCOL(walk);
	p->l4 = WALK_L4(walk);
	p->l4_bytes = p->l3 + p->total - p->l4;
	h = at(p, fragment, 8);
	if (!fragment || !h)
		return;
	p->offset = bpf_ntohs(h[1]) & IP6_OFFSET;
	p->more = bpf_ntohs(h[1]) & IP6_MF;
	p->id = *(__be32 *)(h + 2);
}

/* ip6_lengths is ip4_lengths, and walks the extension headers. */
static __always_inline int ip6_lengths(struct packet *p)
{
	p->l4_bytes = bpf_ntohs(p->ip6->payload_len);
	p->total = sizeof(struct ipv6hdr) + p->l4_bytes;
	p->l4 = p->l3 + sizeof(struct ipv6hdr);
	if (!holds(p))
		return 0;
	if (is_extension(p->protocol)) {
		ip6_headers(p);
		return 1;
	}
	p->l4 ^= p->zero & 0xfff;
	p->l4_bytes ^= p->zero & 0xffff;
	p->offset = p->zero & IP6_OFFSET;
	p->more = p->zero & IP6_MF;
	p->id = p->zero;
	p->broken = p->zero & 1;
	return 1;
}

/* fragment_contradicts tells a fragment that cannot be put together with others:
 * RFC 791 section 3.2, RFC 8200 section 4.5. */
static __always_inline int fragment_contradicts(const struct packet *p)
{
	return (p->more && p->l4_bytes % 8) || !p->l4_bytes || p->offset + p->l4_bytes > 65535;
}

/* ike_header reads the header at off, RFC 7296 section 3.1: version at 17, exchange
 * type at 18. ike_proof reads the rest. left bytes of the message are here, whole in all
 * pieces of the datagram. */
static __always_inline void ike_header(const struct packet *p, struct service *s, __u32 off, __u32 left, __u32 whole)
{
	__u8 *h = at(p, off, IKE_HEADER_BYTES);

	if (left < IKE_HEADER_BYTES || !h) {
		s->kind = KIND_MALFORMED;
		return;
	}
	if (h[17] >> 4 != 2) {
		s->kind = KIND_NOT_IKEV2;
		return;
	}
	s->exchange = h[18];
	s->ike = off;
	s->ike_bytes = whole;
	s->kind = KIND_IKE;
}

/* unmarked: is it IKE, of version 1 or 2, although no marker comes first? So a server
 * answers what came from a client's port 500. */
static __always_inline int unmarked(const struct packet *p, __u32 off, __u32 left, __u32 whole)
{
	__u8 *h = at(p, off, IKE_HEADER_BYTES);

	return left >= IKE_HEADER_BYTES && h && (h[17] >> 4 == 1 || h[17] >> 4 == 2) &&
	       bpf_ntohl(*(__be32 *)(h + 24)) == whole;
}

/* udp_payload classifies what follows the UDP header by the server's port. whole is
 * the payload's length by that header: of all pieces. */
static __always_inline void udp_payload(const struct packet *p, struct service *s, __be16 port, __u32 whole)
{
	__u32 off = p->l4 + sizeof(struct udphdr), marker = p->zero & NON_ESP_MARKER_BYTES;
	__u32 left = p->l4_bytes - sizeof(struct udphdr);
	__u8 *first;

	s->payload_bytes = left;
	if (port != bpf_htons(PORT_IKE)) {
		s->on_4500 = 1;
		if (left == 1) {
			first = at(p, off, 1);
			s->kind = first && *first == 0xff ? KIND_KEEPALIVE : KIND_MALFORMED;
			return;
		}
		first = at(p, off, NON_ESP_MARKER_BYTES);
		if (left < NON_ESP_MARKER_BYTES || !first) {
			s->kind = KIND_MALFORMED;
			return;
		}
		if (!*(__u32 *)first) {
			marker ^= NON_ESP_MARKER_BYTES;
		} else if (!unmarked(p, off, left, whole)) {
			s->kind = KIND_ESP;
			if (left < IKE_HEADER_BYTES && left != whole)
				s->payload_bytes = p->zero; /* a first piece that cannot be told from IKE */
			return;
		}
	}
	ike_header(p, s, off + marker, left - marker, whole - marker);
}

static __always_inline int is_ike_port(__be16 port)
{
	return port == bpf_htons(PORT_IKE) || port == bpf_htons(PORT_NAT_T);
}

/* classify_udp and classify_tcp: seen from the server's side, its port is the
 * destination of what comes in and the source of what goes back. */
static __always_inline void classify_udp(const struct packet *p, struct service *s, int inbound)
{
	struct udphdr *udp = at(p, p->l4, sizeof(*udp));
	__be16 port;

	if (!udp || p->l4_bytes < sizeof(*udp)) {
		s->kind = KIND_MALFORMED;
		return;
	}
	port = inbound ? udp->dest : udp->source;
	if (is_ike_port(port))
		udp_payload(p, s, port, (__u32)bpf_ntohs(udp->len) - sizeof(struct udphdr));
}

static __always_inline void classify_tcp(const struct packet *p, struct service *s, int inbound)
{
	__u8 *tcp = at(p, p->l4, TCP_HEADER_BYTES);
	__u32 header;

	if (!tcp || p->l4_bytes < TCP_HEADER_BYTES) {
		s->kind = KIND_MALFORMED;
		return;
	}
	if (*(__be16 *)(tcp + (inbound ? 2 : 0)) != bpf_htons(PORT_SSTP))
		return;
	s->kind = KIND_TCP;
	header = (tcp[12] >> 4) * 4;
	/* Data with a SYN or a reset may answer what was forged. */
	if (header >= TCP_HEADER_BYTES && header < p->l4_bytes && !(tcp[13] & (TCP_SYN | TCP_RST)))
		s->payload_bytes = p->l4_bytes - header;
}

/* classify says what a packet is. passthrough: TCP 443 is ours. ICMP errors are
 * looked at by icmp.h. */
static __always_inline void classify(const struct packet *p, struct service *s, int inbound, int passthrough)
{
	/* All of it: a compiler may read a field before it asks whether that was written, and
	 * a verifier before Linux 6.3 refuses to read stack that was not. */
	*s = (struct service){.kind = KIND_OTHER, .class = p->protocol == IPPROTO_TCP ? CLASS_TCP : CLASS_IKE};
	if (p->broken)
		s->kind = KIND_MALFORMED;
	else if (p->protocol != IPPROTO_UDP && p->protocol != IPPROTO_ESP && (p->protocol != IPPROTO_TCP || !passthrough))
		return;
	else if (is_fragment(p) && fragment_contradicts(p))
		s->kind = KIND_MALFORMED;
	else if (p->offset)
		s->kind = KIND_LATER;
	else if (p->protocol == IPPROTO_UDP)
		classify_udp(p, s, inbound);
	else if (p->protocol == IPPROTO_TCP)
		classify_tcp(p, s, inbound);
	else {
		s->kind = KIND_ESP;
		s->payload_bytes = p->l4_bytes;
	}
}

/* settle mixes what classify found with a number that the verifier does not know to be
 * 0. It would follow every kind of packet by itself to the end of the program: so
 * they are one from here on. */
static __always_inline void settle(const struct packet *p, struct service *s)
{
	s->kind ^= p->zero & 15;
	s->class ^= p->zero & 3;
	s->payload_bytes ^= p->zero & 0xffff;
	s->on_4500 ^= p->zero & 1;
	s->exchange ^= p->zero & 0xff;
	s->ike ^= p->zero & 0xfff;
	s->ike_bytes ^= p->zero & 0xffff;
	s->quoted ^= p->zero & 0xfff;
	s->quoted_l4 ^= p->zero & 0xfff;
	s->quoted_protocol ^= p->zero & 0xff;
	s->quoted_later ^= p->zero & 1;
}
