//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The hop benchmark's two ends: a generator for live frames (BPF_F_TEST_XDP_LIVE_FRAMES)
 * and a sink that counts. Frames are used again as the receiver left them, so the
 * generator writes every byte that a forwarder changes. */
#include "../../bpf/uapi.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual BSD/GPL";

#define HEAD_WORDS 5

/* A frame with IPv4 and UDP headers: bytes 0 to 5, then words from byte 6 on, with 0
 * where the client's address and both checksums are. */
struct hop_plan {
	__u32 clients; /* how many; they are counted up from first */
	__u32 first;
	__u32 ifindex;    /* where the frame leaves */
	__u32 sequential; /* clients in order, so that all are met; else at random */
	__u32 seed;       /* never 0 */
	__u32 next;
	__u32 ip_sum; /* of the header, and of all that UDP's covers: without the client */
	__u32 udp_sum;
	__u64 start;
	__u64 head[HEAD_WORDS];
	__u64 frames; /* of this run; what follows is the generator's */
	__u64 sent;
	__u64 began; /* monotonic time of the first frame, ns */
	__u64 ended; /* of the last one: making and freeing the run's pages takes longer than the run */
};
_Static_assert(sizeof(struct hop_plan) == 112, "shared with Go");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct hop_plan);
	__uint(max_entries, 1);
} plans SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} arrived SEC(".maps");

static __always_inline __u64 checksum(__u32 sum, __be32 client)
{
	sum += (client & 0xffff) + (client >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~sum & 0xffff;
	return sum ? sum : 0xffff;
}

static __always_inline __u32 pick(struct hop_plan *plan)
{
	__u32 x = plan->seed;

	if (plan->sequential) {
		plan->next = plan->next + 1 < plan->clients ? plan->next + 1 : 0;
		return plan->next;
	}
	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	plan->seed = x;
	return ((__u64)x * plan->clients) >> 32;
}

SEC("xdp")
int hop_generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 zero = 0;
	struct hop_plan *plan = bpf_map_lookup_elem(&plans, &zero);
	__be32 client;

	if (!plan || data + 6 + sizeof(plan->head) > end)
		return XDP_ABORTED;
	client = bpf_htonl(plan->first + pick(plan));
	*(__u32 *)data = plan->start;
	*(__u16 *)(data + 4) = plan->start >> 32;
	*(__u64 *)(data + 6) = plan->head[0];
	*(__u64 *)(data + 14) = plan->head[1];
	*(__u64 *)(data + 22) = plan->head[2] | checksum(plan->ip_sum, client) << 16 | (__u64)client << 32;
	*(__u64 *)(data + 30) = plan->head[3];
	*(__u64 *)(data + 38) = plan->head[4] | checksum(plan->udp_sum, client) << 16;
	if (++plan->sent == 1)
		plan->began = bpf_ktime_get_ns();
	if (plan->sent == plan->frames)
		plan->ended = bpf_ktime_get_ns();
	return bpf_redirect(plan->ifindex, 0);
}

SEC("xdp")
int hop_sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&arrived, &zero);

	if (n && (void *)(eth + 1) <= end && eth->h_proto == bpf_htons(0x0800)) /* the kernel's own are IPv6 */
		++*n;
	return XDP_DROP;
}

/* hop_pass makes a veth receive frames at all, at less cost than GRO. */
SEC("xdp")
int hop_pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* hop_bounce is the least that a forwarder can do: what the second veth costs. */
SEC("xdp")
int hop_bounce(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	__u8 mac[6];

	if ((void *)(eth + 1) > end || eth->h_proto != bpf_htons(0x0800))
		return XDP_PASS;
	__builtin_memcpy(mac, eth->h_dest, 6);
	__builtin_memcpy(eth->h_dest, eth->h_source, 6);
	__builtin_memcpy(eth->h_source, mac, 6);
	return XDP_TX;
}
