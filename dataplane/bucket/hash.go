package bucket

// The hash that says where a client's records are. The program has the same
// one; the values in the test are for both.

const (
	mix1 = 0xbf58476d1ce4e5b9
	mix2 = 0x94d049bb133111eb
)

func finish(x uint64) uint64 {
	x ^= x >> 30
	x *= mix1
	x ^= x >> 27
	x *= mix2
	x ^= x >> 31
	return x
}

// hash4 takes the address as a little-endian load of its bytes.
func hash4(addr uint32, seed uint64) uint64 { return finish(uint64(addr) ^ seed) }

// hash6 takes the two halves of the client key as little-endian loads.
func hash6(hi, lo, seed uint64) uint64 {
	x := hi ^ seed
	x ^= x >> 30
	x *= mix1
	x ^= lo
	return finish(x)
}

// tagOf gives what an IPv6 word holds of its key.
func tagOf(x uint64) uint32 {
	x *= mix1
	return uint32(x >> 32)
}

// choices gives the two buckets of a client, never the same. n is at least 2.
func choices(x uint64, n uint32) (first, second uint32) {
	first = uint32((x >> 32) * uint64(n) >> 32)
	second = uint32((x & 0xffffffff) * uint64(n) >> 32)
	if second == first {
		if second = first ^ 1; second >= n {
			second = first - 1
		}
	}
	return first, second
}
