package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"
)

// Mode says how the program is attached to the interfaces.
type Mode uint8

// Modes of attachment.
const (
	Auto    Mode = iota // native where the driver can, else generic with an alarm
	Native              // native or fail
	Generic             // generic: for tests, several times slower
)

// ParseMode reads auto, native or generic; empty is auto.
func ParseMode(text string) (Mode, error) {
	switch text {
	case "", "auto":
		return Auto, nil
	case "native":
		return Native, nil
	case "generic":
		return Generic, nil
	}
	return Auto, fmt.Errorf("attach mode %q: want auto, native or generic", text)
}

// String gives the word that ParseMode reads.
func (m Mode) String() string {
	switch m {
	case Auto:
		return "auto"
	case Native:
		return "native"
	case Generic:
		return "generic"
	}
	return "invalid"
}

// InterfaceConfig names one interface that gets the program.
type InterfaceConfig struct {
	Name string
}

// Limits of a Plane.
const (
	// MaxInterfaces bounds Config.Interfaces: an inside and an outside arm, and
	// room for pairs of each.
	MaxInterfaces = 8
	// DefaultMaxClients is the capacity of the affinity table of each family: 7 MB
	// of kernel memory for IPv4 and 19 MB for IPv6 (27 and 74 bytes a client), there from the
	// start. Twenty servers carry some 30 000 clients.
	DefaultMaxClients = 250_000
	// MaxTableSize is the largest Maglev table a pool may have. It fixes the
	// size of a pinned map, so that a larger spec needs no new map.
	MaxTableSize = 65537
	// DefaultSweepInterval is how old an Activity may be when it is reported.
	DefaultSweepInterval = 5 * time.Second
)

// Config of a Plane.
type Config struct {
	// PinDir is a folder on a bpffs; it is made if absent. Links and maps are
	// pinned there. In network namespaces /sys is a fresh one: mount a bpffs
	// elsewhere and name it here.
	PinDir string
	// Interfaces get the program: outside and inside, once if they are the same.
	Interfaces []InterfaceConfig
	// MaxClients is the capacity of the affinity table of each family, 0 =
	// DefaultMaxClients. Tables that are pinned already keep theirs.
	MaxClients uint32
	Mode       Mode
	// SweepInterval is the time between two sweeps of the affinity table for
	// activity, 0 = DefaultSweepInterval. Shorter costs CPU with many clients
	// (about 0.2 s for a million), longer makes touches late.
	SweepInterval time.Duration

	bench   bool   // load the benchmark's program too
	schema  uint32 // stands for another version in tests; 0 = this one
	answers uint32 // ICMP errors of our own per second and CPU; 0 = default
}

// defaultAnswers is how many ICMP errors of our own a CPU sends in a second: enough
// for path MTU discovery of a mass login, far too few to be worth provoking.
const defaultAnswers = 100

func (c *Config) answersPerSecond() uint32 {
	if c.answers == 0 {
		return defaultAnswers
	}
	return c.answers
}

// Deps are what a Plane needs from its surroundings. Metrics are pulled: see
// [Plane.Counters].
type Deps struct {
	Log *slog.Logger // nil = silent
}

func (c *Config) validate() error {
	var faults []error
	if !filepath.IsAbs(c.PinDir) {
		faults = append(faults, fmt.Errorf("pin directory %q is not an absolute path", c.PinDir))
	}
	if len(c.Interfaces) == 0 || len(c.Interfaces) > MaxInterfaces {
		faults = append(faults, fmt.Errorf("%d interfaces: want 1 to %d", len(c.Interfaces), MaxInterfaces))
	}
	seen := make(map[string]bool)
	for _, i := range c.Interfaces {
		if i.Name == "" {
			faults = append(faults, errors.New("interface without a name"))
		} else if seen[i.Name] {
			faults = append(faults, fmt.Errorf("interface %s is named twice", i.Name))
		}
		seen[i.Name] = true
	}
	if c.Mode > Generic {
		faults = append(faults, fmt.Errorf("attach mode %d is not known", c.Mode))
	}
	if c.SweepInterval < 0 {
		faults = append(faults, fmt.Errorf("sweep interval %s is negative", c.SweepInterval))
	}
	return errors.Join(faults...)
}
