/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Checksums of what passes, only ever by difference: RFC 1624, equation 3. */
#pragma once
#include "verdict.h"

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

static __always_inline __u32 csum_word(__u32 word)
{
	return (word & 0xffff) + (word >> 16);
}

static __always_inline __u32 csum_in6(__u64 hi, __u64 lo)
{
	return csum_word(hi) + csum_word(hi >> 32) + csum_word(lo) + csum_word(lo >> 32);
}

/* sum_right adds up the bytes from l4 on and tells whether they, with the sum of
 * the pseudo-header, give a right checksum: one complete sum in 65536 looks partial by
 * chance. Global: only what looks partial comes here. */
__noinline int sum_right(struct xdp_md *ctx, __u32 l4, __u32 bytes, __u32 pseudo)
{
	struct scratch *room = scratch_here();
	__s64 sum = pseudo;
	__u32 some;

	if (!room || bytes > SUM_CHUNKS * MAX_QUOTE)
		return 0;
	for (int i = 0; i < SUM_CHUNKS && bytes; i++) {
		some = bytes < MAX_QUOTE ? bytes : MAX_QUOTE;
		seen_anew(some);
		if ((__s32)some < 1 || (__s32)some > MAX_QUOTE)
			return 0;
		__builtin_memset(room->quote, 0, MAX_QUOTE);
		if (bpf_xdp_load_bytes(ctx, l4, room->quote, some))
			return 0;
		sum = bpf_csum_diff(0, 0, (__be32 *)room->quote, MAX_QUOTE, sum);
		l4 += some;
		bytes -= some;
	}
	return csum_fold(sum) == 0xffff;
}

/* pseudo_sum is the sum of the pseudo-header, not complemented, of the packet at l3;
 * rest is protocol and length, in network order, added up. Global, so that the
 * verifier does not keep its paths apart. */
__noinline __u32 pseudo_sum(struct xdp_md *ctx, __u32 l3, __u32 rest, __u32 six)
{
	struct packet p = {.data = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end};
	struct ipv6hdr *ip6;
	struct iphdr *ip;

	if (six) {
		ip6 = at(&p, l3, sizeof(*ip6));
		return !ip6 ? 0 : csum_fold(rest + csum_in6(ip6->saddr[0], ip6->saddr[1]) +
					    csum_in6(ip6->daddr[0], ip6->daddr[1]));
	}
	ip = at(&p, l3, sizeof(*ip));
	return ip ? csum_fold(rest + csum_word(ip->saddr) + csum_word(ip->daddr)) : 0;
}
