package lab

import (
	"bytes"
	"errors"
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

// ip6Counter is the same of IPv6, by its name in /proc/net/snmp6.
func (l *Lab) ip6Counter(role, name string) (int64, error) {
	var v int64
	err := l.inside(role, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return fmt.Errorf("read IPv6 counters: %w", err)
		}
		for line := range bytes.Lines(b) {
			if f := strings.Fields(string(line)); len(f) == 2 && f[0] == name {
				v, err = strconv.ParseInt(f[1], 10, 64)
				return err
			}
		}
		return fmt.Errorf("no IPv6 counter %s", name)
	})
	return v, err
}

// fragmented tells what is missing for the proof that clients and servers sent
// fragments to each other and put them together, in every family. Which server that
// is, is left to chance: of few clients one may have none whose login is fragmented.
func (l *Lab) fragmented() error {
	type counter struct {
		name string
		read func(role, name string) (int64, error)
	}
	list := []counter{{"FragCreates", l.ipCounter}, {"ReasmOKs", l.ipCounter}}
	if l.st.Options.IPv6 {
		list = append(list, counter{"Ip6FragCreates", l.ip6Counter}, counter{"Ip6ReasmOKs", l.ip6Counter})
	}
	var servers []string
	for i := range l.st.Options.Servers {
		servers = append(servers, serverName(i+1))
	}
	var errs []error
	for _, roles := range [][]string{{roleClient}, servers} {
		for _, c := range list {
			var sum int64
			for _, role := range roles {
				n, err := c.read(role, c.name)
				errs = append(errs, err)
				sum += n
			}
			if sum == 0 {
				errs = append(errs, fmt.Errorf("%s of %v is 0", c.name, roles))
			}
		}
	}
	return errors.Join(errs...)
}
