// Package dataplane moves packets: it holds the kernel's tables equal to a
// desired table.Set and its affinity entries, and hands back what the packets
// proved. It knows what should be in the tables, not why.
//
// [Plane] attaches one XDP program to the node's interfaces and pins its links
// and maps, so that forwarding goes on without this process. See DESIGN.md.
package dataplane
