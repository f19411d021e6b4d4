/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From bytes to what a packet is for us. Nothing here reads a map. */
#pragma once
#include "consts.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct packet {
	void *data;
	void *end;
	struct iphdr *ip;
	__u32 ip_bytes;  /* of the IP header */
	__u32 l4_offset; /* from data */
	__u32 l4_bytes;  /* what the IP total length says is there */
	__u16 offset;    /* fragment offset, host order; 0 = first or whole */
	__u8 fragment;   /* part of a fragmented datagram, the first too */
	__u8 protocol;
};

/* What a packet to or from a server's port turns out to be. */
enum kind {
	KIND_OTHER,     /* no service of ours */
	KIND_MALFORMED, /* a service's port, but too short */
	KIND_NOT_IKEV2,
	KIND_IKE,
	KIND_ESP,       /* bare, or in UDP */
	KIND_KEEPALIVE, /* RFC 3948 section 2.3 */
	KIND_LATER,     /* non-first fragment of UDP or ESP */
	KIND_ICMP_ERROR,
};

struct service {
	__u32 kind;
	__u16 payload_bytes; /* of UDP */
	__u8 on_4500;
	__u8 exchange;
	__u8 flags;
	__u8 first_payload;
	__u32 message_id;
};

/* at gives len bytes at off, if they are inside the frame. off must be known to
 * be below 64 KiB; the comparison stands here so that every access has one. */
static __always_inline void *at(const struct packet *p, __u32 off, __u32 len)
{
	void *start = p->data + (off & 0xfff);

	return start + len > p->end ? 0 : start;
}

/* ip_lengths checks what the IP header says of itself against the frame and
 * fills in where the payload lies. False: they contradict. */
static __always_inline int ip_lengths(struct packet *p)
{
	__u32 total = bpf_ntohs(p->ip->tot_len);
	__u32 frame = p->end - (void *)p->ip;

	p->ip_bytes = p->ip->ihl * 4;
	if (p->ip_bytes < sizeof(struct iphdr) || total < p->ip_bytes || total > frame)
		return 0;
	p->l4_offset = sizeof(struct ethhdr) + p->ip_bytes;
	p->l4_bytes = total - p->ip_bytes;
	return 1;
}

/* ike_header reads the header at off, RFC 7296 section 3.1: exchange type at
 * 18, message ID at 20, next payload at 16, version at 17. */
static __always_inline void ike_header(const struct packet *p, struct service *s, __u32 off, __u32 left)
{
	__u8 *h = at(p, off, IKE_HEADER_BYTES);

	if (left < IKE_HEADER_BYTES || !h) {
		s->kind = KIND_MALFORMED;
		return;
	}
	s->first_payload = h[16];
	if (h[17] >> 4 != 2) {
		s->kind = KIND_NOT_IKEV2;
		return;
	}
	s->exchange = h[18];
	s->flags = h[19];
	s->message_id = (__u32)h[20] << 24 | (__u32)h[21] << 16 | (__u32)h[22] << 8 | h[23];
	s->kind = KIND_IKE;
}

/* udp_payload classifies what follows the UDP header by the server's port. */
static __always_inline void udp_payload(const struct packet *p, struct service *s, __be16 port)
{
	__u32 off = p->l4_offset + sizeof(struct udphdr);
	__u32 left = p->l4_bytes - sizeof(struct udphdr);
	__u8 *first;

	s->payload_bytes = left;
	if (port == bpf_htons(PORT_IKE)) {
		ike_header(p, s, off, left);
		return;
	}
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
	if (first[0] | first[1] | first[2] | first[3])
		s->kind = KIND_ESP;
	else
		ike_header(p, s, off + NON_ESP_MARKER_BYTES, left - NON_ESP_MARKER_BYTES);
}

/* icmp_quotes tells whether this is an ICMP error that quotes UDP of a service
 * port or ESP, sent by (source != 0) or to address. Ports that were not quoted
 * do not match. */
static __always_inline int icmp_quotes(const struct packet *p, __be32 address, int source)
{
	__u8 *icmp = at(p, p->l4_offset, ICMP_HEADER_BYTES);
	struct iphdr *quoted;
	__be16 *ports;
	__be16 port;
	__u32 off = p->l4_offset + ICMP_HEADER_BYTES;

	if (!icmp || p->l4_bytes < ICMP_HEADER_BYTES + sizeof(struct iphdr))
		return 0;
	if (icmp[0] != ICMP_DEST_UNREACH && icmp[0] != ICMP_TIME_EXCEEDED && icmp[0] != ICMP_PARAMETER_PROBLEM)
		return 0;
	quoted = at(p, off, sizeof(*quoted));
	if (!quoted || quoted->version != 4 || quoted->ihl < 5)
		return 0;
	if ((source ? quoted->saddr : quoted->daddr) != address)
		return 0;
	if (quoted->protocol == IPPROTO_ESP)
		return 1;
	if (quoted->protocol != IPPROTO_UDP || quoted->frag_off & bpf_htons(IP_OFFSET))
		return 0;
	off += quoted->ihl * 4;
	ports = at(p, off, 4);
	if (!ports || off + 4 > p->l4_offset + p->l4_bytes)
		return 0;
	port = source ? ports[0] : ports[1];
	return port == bpf_htons(PORT_IKE) || port == bpf_htons(PORT_NAT_T);
}

/* classify says what a packet is, seen from the server's side: its port is the
 * destination of what comes in and the source of what goes back. */
static __always_inline void classify(const struct packet *p, struct service *s, int inbound)
{
	struct udphdr *udp;
	__be16 port;

	s->kind = KIND_OTHER;
	if (p->protocol != IPPROTO_UDP && p->protocol != IPPROTO_ESP) {
		if (p->protocol == IPPROTO_ICMP && !p->offset &&
		    icmp_quotes(p, inbound ? p->ip->daddr : p->ip->saddr, inbound))
			s->kind = KIND_ICMP_ERROR;
		return;
	}
	if (p->offset) {
		s->kind = KIND_LATER;
		return;
	}
	if (p->protocol == IPPROTO_ESP) {
		s->kind = KIND_ESP;
		return;
	}
	udp = at(p, p->l4_offset, sizeof(*udp));
	if (!udp || p->l4_bytes < sizeof(*udp)) {
		s->kind = KIND_MALFORMED;
		return;
	}
	port = inbound ? udp->dest : udp->source;
	if (port == bpf_htons(PORT_IKE) || port == bpf_htons(PORT_NAT_T))
		udp_payload(p, s, port);
}
