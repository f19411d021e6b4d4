/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Numbers of the protocols, limits of the tables, and the knobs. */
#pragma once
#include "uapi.h"

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8
#define VLAN_BYTES 4
#define VLAN_ID 0x0fff
#define VLAN_SERVICE 0x1000 /* beside an ID: the tag is one of 802.1ad, not 802.1Q */
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_FRAGMENT 44
#define IPPROTO_ESP 50
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff
#define IP6_OFFSET 0xfff8
#define IP6_MF 1
/* Extension headers that are read, the fragment header among them. */
#define IP6_HEADERS 6
#define TCP_HEADER_BYTES 20
#define TCP_CHECK_OFFSET 16
#define TCP_SYN 2
#define TCP_RST 4

/* ICMP errors, RFC 792, RFC 4443 */
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
#define ICMP_FRAG_NEEDED 4 /* code of destination unreachable */
#define ICMP6_PACKET_TOO_BIG 2
#define ICMP6_TIME_EXCEEDED 3
#define ICMP6_LAST_ERROR 4
#define ICMP_HEADER_BYTES 8
/* Of a packet that one of our errors is about: RFC 1812 section 4.3.2.3 wants
 * no more than 576 bytes in all, RFC 4443 no more than 1280. */
#define MAX_QUOTE 512
#define SUM_CHUNKS 20 /* of MAX_QUOTE: what is added up of a packet whose sum looks partial */

/* IKEv2, RFC 7296 section 3.1 and 3.2; RFC 3948 section 2 */
#define PORT_IKE 500
#define PORT_NAT_T 4500
#define PORT_SSTP 443
#define IKE_HEADER_BYTES 28
#define NON_ESP_MARKER_BYTES 4
#define IKE_AUTH 35
#define IKE_CREATE_CHILD_SA 36
#define IKE_INFORMATIONAL 37
#define IKE_INTERMEDIATE 43 /* RFC 9242 */
#define IKE_FOLLOWUP_KE 44  /* RFC 9370 */
#define IKE_PAYLOAD_SA 33
#define IKE_PAYLOAD_SK 46
#define IKE_PAYLOAD_SKF 53 /* RFC 7383 */
#define IKE_FLAG_RESPONSE 0x20
#define SA_SECONDS 600 /* a message of an SA to another client is no evidence for so long */
/* Shortest ESP packet that counts, native or in UDP: SPI, sequence number, and an IV or
 * integrity value of which even the shortest transforms need 12 bytes. */
#define ESP_PAYLOAD_MIN_BYTES 20

/* Classes, stances, confirmations: those of package table. */
#define CLASS_IKE 1
#define CLASS_TCP 2
#define CLASSES 2
#define STANCE_TAKE 1
#define STANCE_KEEP 2
#define STANCE_LEAVE 3
#define EARNED_SK 1
#define EARNED_AUTH 2
#define CONFIRMED 3

/* Flags of a VIP and of its backends. */
#define PASSTHROUGH 1 /* TCP 443 is ours */
#define DSR 2

/* Limits. Slot 0 is none, so arrays by slot have 256 places. */
#define MAX_VIPS 16
#define SLOTS 256
#define POOLS (MAX_VIPS * CLASSES)
#define MAX_TABLE_SIZE 65537
#define PLACES_PER_CHUNK 32 /* u16 each: one cache line a chunk */
#define CHUNKS ((MAX_TABLE_SIZE + PLACES_PER_CHUNK - 1) / PLACES_PER_CHUNK)
#define SERVER_BUCKETS 512
#define SERVER_WAYS 4
#define INTERFACES 1024 /* by ifindex modulo; a collision means "cannot transmit" */
#define MAX_VLANS 64
#define NEXT_HOPS_BY_CLIENT 4096
#define NEXT_HOPS_BY_VIP 16 /* shared next hops of one VIP: a few hash bits, so that ECMP spreads */
#define WAYS4 7
#define WAYS6 5
#define MAX_STASH 4096
#define MAX_PENDING 65536
#define MAX_SILENCES 65536
#define MAX_SIGHTINGS 65536
#define MAX_SOURCES 65536
#define MAX_SAS 65536
#define MAX_FRAGMENTS 16384
#define MAX_NOT_RETURN 6144 /* two generations of table.MaxPrefixes, VIPs and backends, and room to change */
#define PLACES_BYTES 8192   /* a bit for each of 65536 places of a destination */
#define TRACE_BYTES (256 * 1024)

/* Flags of struct interface. */
#define INTERFACE_PARTIAL 1     /* may hand over partial checksums */
#define INTERFACE_TRANSMIT 2    /* transmits XDP frames */
#define INTERFACE_XDP_TX 4      /* XDP_TX is safe here; else redirect to itself */
#define INTERFACE_TRANSMIT_SG 8 /* transmits frames of several buffers */
#define INTERFACE_GENERIC 16    /* generic mode: a frame keeps the kernel's mark of a partial checksum */
/* Flag of struct next_hop beside those: no router between. */
#define HOP_DIRECT 128
#define HOP_NARROW 64 /* a smaller MTU than the exit's own: of a route, or learned for one destination */
#define SHARE_SECONDS 30 /* hops are shared for so long without a sign of the daemon that watches the routes */

/* Knobs, set before the program is loaded. */
const volatile __u32 hz = 250;              /* jiffies of a second */
const volatile __u32 tick_shift = 8;        /* jiffies >> this = tick of 1 to 2 s */
const volatile __u32 next_hop_jiffies = 64; /* life of a cached next hop, about 256 ms */
const volatile __u32 answers_per_second = 100; /* ICMP errors of our own, per CPU */
const volatile __u64 affinity_seed = 0;     /* of the pinned tables */
const volatile __u32 buckets4 = 2;          /* how many there are: at least two */
const volatile __u32 buckets6 = 2;
