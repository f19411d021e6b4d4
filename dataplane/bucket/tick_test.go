//go:build !race

package bucket

import "unsafe"

// slowdown divides the size of the long tests.
const slowdown = 1

// storeTick stores the program's half of a word as the program does, with one
// 16-bit store. The race detector calls that a race; tick_race_test.go.
func storeTick(word *uint64, half uint16) {
	*(*uint16)(unsafe.Add(unsafe.Pointer(word), 6)) = half
}
