package lab

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ipCounter reads a counter of the namespace's IP layer by its name in
// /proc/net/snmp, FragCreates (fragments made) or ReasmOKs (datagrams put
// together) for instance: the proof that traffic was really fragmented.
func (l *Lab) ipCounter(role, name string) (int64, error) {
	var v int64
	err := l.inside(role, func() error {
		// Not /proc/net: that is the process', this is the thread's.
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return fmt.Errorf("read IP counters: %w", err)
		}
		var names []string
		for line := range bytes.Lines(b) {
			f := strings.Fields(string(line))
			if len(f) == 0 || f[0] != "Ip:" {
				continue
			}
			if names == nil {
				names = f
				continue
			}
			for i, n := range names {
				if n == name && i < len(f) {
					v, err = strconv.ParseInt(f[i], 10, 64)
					return err
				}
			}
		}
		return fmt.Errorf("no IP counter %s", name)
	})
	return v, err
}
