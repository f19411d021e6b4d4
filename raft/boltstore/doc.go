// Package boltstore keeps a raft log and raft's few stable values in one bbolt
// file: hraft's LogStore, StableStore and CommitTrackingLogStore.
//
// Every record carries a CRC-32C. bbolt answers corruption with a panic, often
// in a goroutine of its own, so Open first walks the file page by page with
// code that cannot panic, and every later access runs under recover: the caller
// sees an error, never a panic and never a fault of the memory map.
package boltstore
