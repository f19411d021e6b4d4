package bucket

// Ticks are coarse time, 1 to 2 s each, 15 bits, never 0.
const (
	TickMask = 1<<15 - 1
	// StaleTicks is the age at which a sweep clears a tick, well before it wraps:
	// a sweep must come by once in the rest, 24 000 ticks (6 h and more).
	StaleTicks = 1 << 13
	// futureTicks is how far another CPU's tick may be ahead.
	futureTicks = 16
)

// Tick cuts a count of ticks to what a word holds.
func Tick(n uint64) uint16 { return max(uint16(n&TickMask), 1) }

// Age gives how many ticks ago a tick was; false: never.
func Age(now, tick uint16) (uint16, bool) {
	if tick == 0 {
		return 0, false
	}
	age := (now - tick) & TickMask
	if age > TickMask+1-futureTicks {
		age = 0
	}
	return age, true
}

// Window is the age below which a record has had packets since a sweep that
// began at last. One more than the difference: that tick went on after it.
func Window(now, last uint16) uint16 {
	return min((now-last)&TickMask+1, StaleTicks)
}
