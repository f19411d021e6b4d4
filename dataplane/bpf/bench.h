/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The benchmark's way in: BPF_PROG_TEST_RUN uses the frame again as the program
 * left it, so this restores what the program changed, picks a client at random, and
 * runs the same body. Never loaded on a node. */
#pragma once

#define BENCH_WORDS 13

/* The frame's start as it was. It is restored by stores that no load of the program
 * straddles, because a load that does waits for both stores: MACs 0 to 5, then words
 * from byte 6 on; with an untagged frame, every address and port lies in one. */
struct bench_plan {
	__u32 clients; /* how many; they are counted up from first */
	__u32 first;
	__u32 mode; /* 0 the program, 1 only this entry, 2 only the loop */
	__u32 seed; /* never 0 */
	__u64 start;             /* bytes 0 to 5 */
	__u64 head[BENCH_WORDS]; /* bytes 6 to 109 */
	__u64 pick[3];           /* of head[2] to head[4], the half that is the client; 0 = none */
};
_Static_assert(sizeof(struct bench_plan) == 152, "shared with Go");

ARRAY(bench_plans, BPF_MAP_TYPE_ARRAY, struct bench_plan, 1);

static __always_inline int bench_restore(struct xdp_md *ctx, struct bench_plan *plan)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 x = plan->seed;
	__u64 client, word;

	if (data + 6 + sizeof(plan->head) > end)
		return 0;
	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	plan->seed = x;
	client = bpf_htonl(plan->first + (__u32)(((__u64)x * plan->clients) >> 32));
	client |= client << 32;
	*(__u32 *)data = plan->start;
	*(__u16 *)(data + 4) = plan->start >> 32;
#pragma unroll
	for (int i = 0; i < BENCH_WORDS; i++) {
		word = plan->head[i];
		if (i >= 2 && i < 5)
			word |= client & plan->pick[i - 2];
		*(__u64 *)(data + 6 + 8 * i) = word;
	}
	return 1;
}

SEC("xdp.frags")
int vpnlb_bench(struct xdp_md *ctx)
{
	__u32 zero = 0, reason;
	struct bench_plan *plan = bpf_map_lookup_elem(&bench_plans, &zero);

	if (!plan || plan->mode == 2)
		return XDP_TX;
	if (!bench_restore(ctx, plan))
		return XDP_ABORTED;
	if (plan->mode == 1)
		return XDP_TX;
	return run(ctx, &reason, 0);
}
