//go:build race

package bucket

import (
	"sync/atomic"
	"unsafe"
)

// slowdown divides the size of the long tests.
const slowdown = 10

// storeTick stands in for the 16-bit store, which the race detector cannot tell
// from a race: it swaps the upper 32 bits and changes 16 of them.
func storeTick(word *uint64, half uint16) {
	upper := (*uint32)(unsafe.Add(unsafe.Pointer(word), 4))
	for {
		v := atomic.LoadUint32(upper)
		if atomic.CompareAndSwapUint32(upper, v, v&0xffff|uint32(half)<<16) {
			return
		}
	}
}
