package lab

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestReadPing(t *testing.T) {
	start := time.Unix(1000, 0)
	after := func(n int) time.Time { return start.Add(time.Duration(n) * pingInterval) }
	line := func(seq int) string {
		return fmt.Sprintf("[%d.%06d] 64 bytes from 198.19.255.1: icmp_seq=%d ttl=64 time=1.2 ms\n", after(seq).Unix(), after(seq).Nanosecond()/1000, seq)
	}
	lines := func(from, to int) (s string) {
		for i := from; i <= to; i++ {
			s += line(i)
		}
		return s
	}
	for name, c := range map[string]struct {
		log        string
		now        int // in intervals after the start
		sent, lost int64
		longest    int // in intervals
	}{
		"none lost":      {lines(1, 50), 51, 50, 0, 0},
		"on its way":     {lines(1, 50), 59, 50, 0, 0},
		"never again":    {lines(1, 50), 1050, 50 + 990, 990, 998},
		"a gap":          {lines(1, 10) + lines(21, 50), 51, 50, 10, 9},
		"late":           {lines(1, 10) + line(12) + line(11) + lines(13, 20), 21, 20, 0, 0},
		"twice":          {lines(1, 10) + line(10)[:len(line(10))-1] + " (DUP!)\n" + lines(12, 20), 21, 20, 1, 0},
		"first ones":     {lines(4, 20), 21, 20, 3, 0},
		"nothing":        {"", 100, 0, 0, 0},
		"other messages": {"PING 198.19.255.1 56(84) bytes of data.\n" + lines(1, 9) + "ping: sendmsg: Network is unreachable\n", 10, 9, 0, 0},
	} {
		var v clientView
		if err := v.readPing(strings.NewReader(c.log), after(c.now)); err != nil {
			t.Error(name, err)
		}
		var longest time.Duration
		for _, w := range v.Windows {
			if w.From.After(start) {
				longest = max(longest, w.To.Sub(w.From))
			}
		}
		if v.Sent != c.sent || v.Lost != c.lost || longest != time.Duration(c.longest)*pingInterval {
			t.Errorf("%s: sent %d, lost %d, longest window %s; want %d, %d, %d intervals", name, v.Sent, v.Lost, longest, c.sent, c.lost, c.longest)
		}
	}
}

// A tunnel of each kind is pinged, over each family.
func TestPingedClients(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want []int
	}{
		{Options{Clients: 30}, []int{0, 1}},
		{Options{Clients: 30, IPv6: true}, []int{0, 1, 2, 5}},
		{Options{Clients: 1}, []int{0}},
	} {
		if got := c.o.pinged(); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.o, got, c.want)
		}
	}
}
