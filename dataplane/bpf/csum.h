/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Checksums, only ever by difference: RFC 1624, equation 3. */
#pragma once
#include "parse.h"

/* One less in the TTL, the high byte of its network-order word: ~1. */
#define CSUM_DELTA_TTL 0xfffeU

static __always_inline __u16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* csum_change gives the checksum after a change of delta (~old + new). */
static __always_inline __u16 csum_change(__u16 check, __u32 delta)
{
	return ~csum_fold((__u16)~check + delta);
}

/* csum_is_partial tells whether a UDP checksum is only the sum of the
 * pseudo-header, left for a device to complete (Linux CHECKSUM_PARTIAL). */
static __always_inline int csum_is_partial(const struct iphdr *ip, const struct udphdr *udp)
{
	__u32 sum = (ip->saddr & 0xffff) + (ip->saddr >> 16) + (ip->daddr & 0xffff) + (ip->daddr >> 16);

	sum += bpf_htons(IPPROTO_UDP) + udp->len;
	return csum_fold(sum) == udp->check;
}
