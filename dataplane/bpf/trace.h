/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Frames of one client, for a person to look at. */
#pragma once
#include "verdict.h"

static __always_inline int trace_match(const struct trace_filter *filter, const __u8 *address)
{
	const __u64 *want = (const __u64 *)filter->client, *mask = (const __u64 *)filter->mask;
	__u64 has[2];

	__builtin_memcpy(has, address, 16);
	return (has[0] & mask[0]) == want[0] && (has[1] & mask[1]) == want[1];
}

/* trace_addresses finds both addresses in the frame as it came or leaves, IPv4 as
 * mapped. Tags and answers move the header, so it is found anew. */
static __always_inline int trace_addresses(struct scratch *room)
{
	__u8 *source = room->source, *destination = room->destination;
	const __u8 *head = room->head;
	__u32 l3 = 14;

	if (head[12] == 0x81 || head[12] == 0x88)
		l3 = 18;
	if (head[l3] >> 4 == 6) {
		__builtin_memcpy(source, head + l3 + 8, 16);
		__builtin_memcpy(destination, head + l3 + 24, 16);
		return 1;
	}
	if (head[l3] >> 4 != 4)
		return 0;
	source[10] = source[11] = destination[10] = destination[11] = 0xff;
	__builtin_memcpy(source + 12, head + l3 + 12, 4);
	__builtin_memcpy(destination + 12, head + l3 + 16, 4);
	return 1;
}

static __noinline int trace_fill(struct trace_event *e, struct scratch *room)
{
	__builtin_memcpy(e->head, room->head, sizeof(e->head));
	return 0;
}

/* trace copies the frame's head; it never fails the packet. Not inlined: it is the
 * rare path. */
__noinline int trace(struct xdp_md *ctx, __u64 jiffies, __u32 reason, __u32 slot, __u64 action_out)
{
	__u32 zero = 0, length = bpf_xdp_get_buff_len(ctx), copy;
	struct trace_filter *filter = bpf_map_lookup_elem(&trace_filters, &zero);
	struct events *events = events_here();
	struct scratch *room = scratch_here();
	struct trace_event *e;

	if (!filter || !events || !room || filter->until < jiffies || !filter->left || length < 54)
		return 0;
	copy = length;
	seen_anew(copy);
	if (copy > sizeof(room->head))
		copy = sizeof(room->head);
	if (copy < 54) /* known, but not to a verifier before Linux 6.8 */
		return 0;
	__builtin_memset(room->source, 0, 32);
	if (bpf_xdp_load_bytes(ctx, 0, room->head, copy) || !trace_addresses(room) ||
	    (!trace_match(filter, room->source) && !trace_match(filter, room->destination)))
		return 0;
	e = bpf_ringbuf_reserve(&trace_ring, sizeof(*e), 0);
	if (!e) {
		events->trace_lost++;
		return 0;
	}
	trace_fill(e, room);
	filter->left--;
	e->bytes = length;
	e->jiffies = jiffies;
	e->reason = reason;
	e->slot = slot;
	e->action = action_out;
	e->out = action_out >> 32;
	e->ifindex = ctx->ingress_ifindex;
	bpf_ringbuf_submit(e, 0);
	return 0;
}
