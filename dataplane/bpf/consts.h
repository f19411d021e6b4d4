/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Numbers of the protocols, limits of the tables, and the knobs. */
#pragma once
#include "uapi.h"

#define ETH_P_IP 0x0800
#define AF_INET 2
#define IPPROTO_ICMP 1
#define IPPROTO_UDP 17
#define IPPROTO_ESP 50
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

/* ICMP errors, RFC 792 */
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
#define ICMP_HEADER_BYTES 8

/* IKEv2, RFC 7296 section 3.1 and 3.2; RFC 3948 section 2 */
#define PORT_IKE 500
#define PORT_NAT_T 4500
#define IKE_HEADER_BYTES 28
#define NON_ESP_MARKER_BYTES 4
#define IKE_AUTH 35
#define IKE_CREATE_CHILD_SA 36
#define IKE_INFORMATIONAL 37
#define IKE_INTERMEDIATE 43 /* RFC 9242 */
#define IKE_FOLLOWUP_KE 44  /* RFC 9370 */
#define IKE_PAYLOAD_SK 46
#define IKE_PAYLOAD_SKF 53 /* RFC 7383 */
#define IKE_FLAG_RESPONSE 0x20
/* Shortest UDP payload that counts as ESP: SPI, sequence number, and an IV or
 * integrity value of which even the shortest transforms need 12 bytes. */
#define ESP_PAYLOAD_MIN_BYTES 20

/* Classes, stances, confirmations: those of package table. */
#define CLASS_IKE 1
#define CLASSES 2
#define STANCE_TAKE 1
#define STANCE_KEEP 2
#define STANCE_LEAVE 3
#define EARNED_SK 1
#define EARNED_AUTH 2
#define CONFIRMED 3

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
#define NEXT_HOPS_BY_CLIENT 4096
#define MAX_PENDING 65536
#define MAX_SILENCES 65536
#define MAX_FRAGMENTS 16384
#define MAX_NOT_RETURN 6144 /* two generations of table.MaxPrefixes, VIPs and backends, and room to change */
#define MAX_CLIENTS 1000000 /* default; user space sets its own */

/* Flags of struct interface. */
#define INTERFACE_PARTIAL 1  /* may hand over partial checksums */
#define INTERFACE_TRANSMIT 2 /* transmits XDP frames */
#define INTERFACE_XDP_TX 4   /* XDP_TX is safe here; else redirect to itself */

/* Knobs, set before the program is loaded. */
const volatile __u32 tick_shift = 8;       /* jiffies >> this = tick of 1 to 2 s */
const volatile __u32 next_hop_jiffies = 64; /* life of a cached next hop, about 256 ms */
