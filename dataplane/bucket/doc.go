// Package bucket is user space's half of the affinity table: an array of cache
// lines, shared with the XDP program, that says which server a client has. It
// works on memory that it is given, in production the mapping of a BPF array.
//
// # Who writes what
//
// A record is one aligned 64-bit word in a way of a bucket (layout.go). Its
// lower 48 bits, record bits, are user space's: match, slot, state, class. The
// upper 16, tick and heard, are the program's, which stores them together with
// one 16-bit store and stores nothing else. User space changes a record by
// compare-and-swap of the whole word and so keeps the tick half that it finds; it
// publishes and empties a way by one 64-bit store. One goroutine writes at a
// time; programs and Go readers run beside it on any CPU.
//
// The program looks at the ways of a client's first bucket, then, if the first
// bucket's overflow word says that it has records elsewhere, at the second bucket,
// then in the stash. In each it loads a word once with one 64-bit load, compares
// match and class, takes slot and state from that same load, and, for IPv6, then
// compares the key. Each 64-bit load sees the lower 48 bits of exactly one store
// of ours, on x86 and on arm64: they are aligned, and the program's own stores
// touch other bytes.
//
// # Why a program run takes no client for another
//
// Throughout, "wrong" means: a packet of client P is given slot and state that no
// record of P had during the run.
//
//  1. IPv4, any change. Address, class, slot and state are in one load of one
//     word, so they were stored together as a record of P. That load is all; no
//     order of loads is involved. The program may be late, and then acts as it
//     would have a moment before. Hence IPv4 ways may be reused at once.
//  2. Change of server (both families): one compare-and-swap of the word in its
//     place, as 1. The key does not change. A run sees the old server or the new.
//  3. IPv6, publishing P in a way: key stores, then the word. Go's atomic stores
//     are ordered for every observer that loads in order. A run that sees the
//     word and then the key finds P, or, if its loads were not in order (arm64
//     keeps no order between two loads without a barrier, and a branch between
//     them is none), an older key: a miss. A miss is Maglev's answer, as before
//     the record.
//  4. IPv6, a way goes from key A to key B. A run may hold the word of one and the
//     key of the other: on x86 A's word and B's key, if it was interrupted between
//     the two loads; on arm64 also B's word and A's key, or halves of both keys,
//     since loads may be early. It then goes wrong only for a packet whose key is
//     what was read, A, B, or a mixture of their halves, and whose tag is that of
//     the word, A's or B's. So user space gives a way to B only if the tags of A
//     and B differ and no mixture has the tag of either (confusable): whatever the
//     order of the loads, nothing matches but A's word with A's key and B's word
//     with B's. If A and B share a half, mixtures are A or B themselves.
//  5. IPv6, a way goes from A to B to C. A run that spans both changes could mix A
//     and C, which were not compared. Between a way's clearing and its next key
//     lies the grace period of 100 ms, so such a run would last longer than
//     that, while it takes microseconds. Where a virtual CPU is held up for so
//     long between two loads, A and C would also need equal tags: 2^-32, under
//     a secret seed.
//  6. IPv6, the same key returns at once: the key's bytes never change. A run that
//     holds the old word acts on a record that P had.
//  7. Second bucket: words are compared by whole address, or tag and whole key, so
//     it does not matter whose first bucket it is. No record ever moves: it stays
//     where it was put until it is removed, so no run looks for one between two
//     places. The overflow count goes up before and down after; a run that
//     loaded it before it went up misses the record, as in 3.
//  8. Stash. The kernel finds an element by its whole key but recycles its memory
//     at once, so a run may read another record's value. It therefore compares
//     match and class of the word here too: IPv4 as in 1. IPv6: two stashed
//     clients with equal tags, one deleted and the other put into the same
//     element within the nanoseconds between lookup and load: 2^-32 for each
//     such reuse. This is the one case that rests on odds alone.
//
// # What may happen, and is harmless
//
//   - A tick, and with it a heard bit, lands in a way that was emptied: slot 0
//     stays empty, and the next publishing store begins at tick 0.
//   - It lands in a way that was just reused, or on a record whose server just
//     changed: one record looks seen or heard once too often, for one sweep.
//   - The program copies a heard bit that user space clears at that moment: heard
//     is told once more. Two CPUs store at once and one bit is lost: the server's
//     next packet brings it again.
//   - A tick stored between a look-up and a rewrite in the stash, which has no
//     compare-and-swap, is lost: the next packet brings it again.
//   - A miss while a record is being published, or between Remove and Put.
package bucket
