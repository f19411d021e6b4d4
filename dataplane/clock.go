package dataplane

import (
	"fmt"
	"math/bits"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/bucket"
)

// clock reads the kernel's jiffies, the time base of the program.
type clock struct {
	jiffies  *ebpf.Program
	high     *ebpf.Program // their upper half
	hz       uint32
	hzSource string
	shift    uint32 // jiffies >> shift = ticks
}

// measureTime is how long HZ is measured where the configuration cannot be
// read: long enough to tell 250 from 300.
const measureTime = 250 * time.Millisecond

func newClock() (*clock, error) {
	c := &clock{}
	if err := c.load(); err != nil {
		return nil, err
	}
	if c.hz == 0 {
		if err := c.measure(); err != nil {
			c.Close()
			return nil, err
		}
	}
	c.shift = tickShift(c.hz)
	return c, nil
}

func (c *clock) load() error {
	spec, err := bpf.LoadClock()
	if err != nil {
		return fmt.Errorf("read clock program: %w", err)
	}
	coll, err := ebpf.NewCollection(spec)
	if err == nil {
		defer coll.Close()
		if c.hz, err = runClock(coll.Programs["config_hz"]); err == nil && c.hz != 0 {
			c.hzSource = "kconfig"
		}
	} else {
		// The kernel's configuration cannot be read: leave that program out.
		delete(spec.Programs, "config_hz")
		delete(spec.Maps, ".kconfig")
		if coll, err = ebpf.NewCollection(spec); err != nil {
			return fmt.Errorf("load clock program: %w", err)
		}
		defer coll.Close()
	}
	c.jiffies, c.high = coll.DetachProgram("jiffies"), coll.DetachProgram("jiffies_high")
	return nil
}

func runClock(p *ebpf.Program) (uint32, error) {
	value, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 14)})
	if err != nil {
		return 0, fmt.Errorf("read kernel clock: %w", err)
	}
	return value, nil
}

// measure compares jiffies with the monotonic clock and takes the nearest rate
// that a kernel can be configured with.
func (c *clock) measure() error {
	began := time.Now()
	first, err := runClock(c.jiffies)
	if err != nil {
		return err
	}
	<-time.After(measureTime)
	last, err := runClock(c.jiffies)
	if err != nil {
		return err
	}
	c.hz = nearestHZ(float64(last-first) / time.Since(began).Seconds())
	c.hzSource = "measured"
	return nil
}

func nearestHZ(rate float64) uint32 {
	best := uint32(100)
	for _, hz := range []uint32{100, 250, 300, 1000, 1024} {
		if abs(rate-float64(hz)) < abs(rate-float64(best)) {
			best = hz
		}
	}
	return best
}

func abs(x float64) float64 { return max(x, -x) }

// tickShift gives the smallest shift that makes a tick at least a second.
func tickShift(hz uint32) uint32 { return uint32(bits.Len32(hz - 1)) }

// now is the low half of jiffies.
func (c *clock) now() (uint32, error) { return runClock(c.jiffies) }

// whole is all of jiffies. It wraps nowhere: read again where the low half did.
func (c *clock) whole() (uint64, error) {
	for {
		high, err := runClock(c.high)
		if err != nil {
			return 0, err
		}
		low, err := runClock(c.jiffies)
		if err != nil {
			return 0, err
		}
		if again, err := runClock(c.high); err != nil || again == high {
			return uint64(high)<<32 | uint64(low), err
		}
	}
}

// tick is the coarse time that the program stores; never 0.
func (c *clock) tick() (uint16, error) {
	j, err := c.whole()
	return bucket.Tick(j >> c.shift), err
}

// ticks converts a number of ticks to time.
func (c *clock) ticks(n uint16) time.Duration {
	return time.Duration(n) * (time.Second << c.shift) / time.Duration(c.hz)
}

// after is the low half of jiffies d from now; never 0.
func (c *clock) after(d time.Duration) (uint32, error) {
	j, err := c.now()
	return max(j+uint32(d.Seconds()*float64(c.hz)), 1), err
}

func (c *clock) Close() {
	if c.jiffies != nil {
		c.jiffies.Close()
	}
	if c.high != nil {
		c.high.Close()
	}
}
