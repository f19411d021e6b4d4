//go:build !vpnlb_other_schema

package dataplane

// schema is the version of the maps' layout and part of their pins' names. A
// change of any struct in bpf/structs.h that is shared with user space, or of a
// map's type or size, needs a new one.
const schema = 3
