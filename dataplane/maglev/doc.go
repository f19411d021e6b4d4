// Package maglev chooses servers for clients nobody has met yet: a keyed hash
// of the client and a weighted Maglev table. Both are part of the agreement
// between the nodes: every node, and the packet program, must come to the same
// slot from the same (key, size, backends, client), so both are named, pinned by
// golden files, and never changed under the same name.
//
// # The client hash, "vpnlb-hash-1"
//
// The program computes it for every packet of an unknown client, so it is a
// chain of 64-bit mixes (shift, xor, multiply; no loop, no table, no helper
// call). All loads are little endian, as on every machine the program runs on:
//
//	k0 = le64(key[0:8])      k1 = le64(key[8:16])
//	w0 = le64(client[0:8])   w1 = le64(client[8:16])
//
//	mix(x):  x ^= x >> 30;  x *= 0xbf58476d1ce4e5b9;
//	         x ^= x >> 27;  x *= 0x94d049bb133111eb;
//	         x ^= x >> 31;  return x;
//
//	h = mix(w0 ^ k0 ^ (u64)class * 0x9e3779b97f4a7c15)
//	h = mix(h ^ w1)
//	h = mix(h + k1)
//
//	hash32 = h >> 32
//	index  = ((u64)hash32 * table_size) >> 32
//
// For IPv4 the client is the mapped address (::ffff:a.b.c.d), so w0 is 0 and the
// first line is a constant of (key, class): [Seed]. What is left for each packet
// is two mixes:
//
//	w1 = (u64)ip->saddr << 32 | 0xffff0000     // saddr as loaded, little endian
//	h  = mix(mix(seed[class] ^ w1) + k1)
//
// The mixing function is the finaliser of SplitMix64 (public domain). It is a
// bijection, so two IPv4 clients never share a 64-bit hash. The key is unknown
// to clients; the hash is not a cryptographic one, it keeps an outsider from
// aiming addresses at one server offline, no more.
//
// # The table
//
// See [Build].
package maglev
