/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The benchmark's way in: BPF_PROG_TEST_RUN uses the frame again as the program
 * left it, so this restores what the program changed, picks a client at random, and
 * runs the same body. Never loaded on a node. */
#pragma once

/* The frame's start as it was, and which of its bytes are the client's address. */
struct bench_plan {
	__u32 clients;   /* how many; they are counted up from the address in head */
	__u32 client_at; /* offset of the last 4 bytes of what changes; 0 = none */
	__u32 mode;      /* 0 the program, 1 only this entry, 2 only the loop */
	__u32 seed;
	__u64 head[12]; /* 96 bytes */
};
_Static_assert(sizeof(struct bench_plan) == 112, "shared with Go");

ARRAY(bench_plans, BPF_MAP_TYPE_ARRAY, struct bench_plan, 1);

static __always_inline int bench_restore(struct xdp_md *ctx, struct bench_plan *plan)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 x = plan->seed, at, client;
	__u64 *to = data;
	__be32 *word;

	if (data + sizeof(plan->head) > end)
		return 0;
#pragma unroll
	for (int i = 0; i < 12; i++)
		to[i] = plan->head[i];
	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	plan->seed = x;
	at = plan->client_at;
	if (!at)
		return 1;
	word = data + (at & 0x7f);
	if ((void *)(word + 1) > end)
		return 0;
	client = ((__u64)x * plan->clients) >> 32;
	*word = bpf_htonl(bpf_ntohl(*word) + client);
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
