//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* User space's look at the kernel's clock: it runs these by BPF_PROG_TEST_RUN. */
#include "uapi.h"
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual BSD/GPL";

extern unsigned long CONFIG_HZ __kconfig;

SEC("xdp")
int jiffies(struct xdp_md *ctx)
{
	return bpf_jiffies64();
}

/* A test run gives 32 bits. */
SEC("xdp")
int jiffies_high(struct xdp_md *ctx)
{
	return bpf_jiffies64() >> 32;
}

/* Apart, because it cannot be loaded where the kernel's configuration is not to
 * be read; then HZ is measured with the other one. */
SEC("xdp")
int config_hz(struct xdp_md *ctx)
{
	return CONFIG_HZ;
}
