/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* State of one packet on its way through the program. */
#pragma once
#include "maps.h"
#include "parse.h"

struct flow {
	struct packet packet;
	struct service service;
	struct xdp_md *ctx;
	struct control *control;
	struct interface *in;
	struct rules *rules;
	__u64 jiffies;
	__u32 selector;
	__u32 action;   /* XDP_*; XDP_REDIRECT goes to ifindex */
	__u32 ifindex;
};

/* tick is the coarse time of the affinity entries; never 0, which is none. */
static __always_inline __u16 tick_of(__u64 jiffies)
{
	__u16 tick = jiffies >> tick_shift;

	return tick ? tick : 1;
}

/* done names the reason and the action in one return statement. */
static __always_inline __u32 done(struct flow *f, __u32 action, __u32 reason)
{
	f->action = action;
	return reason;
}
