// Package bucket is user space's half of the affinity table: an array of cache
// lines, shared with the XDP program, that says which server a client has.
package bucket
