package checks

import (
	"bytes"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Test and example traffic stays in the documentation and benchmark ranges, and
// what cannot leave its host or link is free.
var freeRanges = prefixes(
	"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15", "2001:db8::/32",
	"127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10", "224.0.0.0/4", "ff00::/8", "0.0.0.0/8", "::/128", "255.255.255.255/32",
)

// constants are addresses with a meaning of their own, each with where it may
// stand: a path's beginning.
var constants = []struct{ addr, where, meaning string }{
	{"192.0.0.8", "dataplane/", "the dummy address of RFC 7600, of the self-check's client"},
	{"100::", "dataplane/", "the discard prefix of RFC 6666"},
	{"100::8", "dataplane/", "the same, of the self-check's client"},
	{"fc00::", "dataplane/", "of fc00::/7, which has a place of its own (RFC 4193)"},
	{"fd00::", "dataplane/places_test.go", "the same"},
	{"2001:db9::1", "dataplane/places_test.go", "the first address behind the documentation range"},
	{"192.88.99.1", "dataplane/places_test.go", "of a range that was given back (RFC 7526)"},
	{"203.0.1.1", "cluster/state/", "of servers in recorded snapshots, which must be read for ever"},
	{"::2", "cmd/vpnlb/testdata/node/six.txtar", "the end of an address, as sed takes it"},
	{"240.0.0.1", "dataplane/model/fixture/", "of class E, which is nobody's"},
	{"240.0.0.1", "node/", "the same, which no node may have"},
}

var (
	// quad finds four numbers, of which none goes on.
	quad = regexp.MustCompile(`[\w.]*\d+\.\d+\.\d+\.\d+[\w.]*`)
	// bytesOf finds addresses that are written as the bytes of a Go literal.
	bytesOf = regexp.MustCompile(`(?:\[4\]byte\{|\bIPv4\(|\bmapped\()(\d\w*), ([^,]+), ([^,]+), ([^,)}]+)`)
	number  = regexp.MustCompile(`^\d\w*`)
	// colons finds what may be an IPv6 address.
	colons = regexp.MustCompile(`[\w.]*(?::[\w.]*){2,}`)
	// section says that the numbers of a line, or of the next one, are of a
	// document's section.
	section = regexp.MustCompile(`RFC ?\d|MS-[A-Z]|\b[Ss]ections? `)
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestAddresses(t *testing.T) {
	met := map[string]bool{}
	for _, f := range textFiles(t) {
		if f.path == "deploy/checks/addresses_test.go" { // its own examples of what must not be
			continue
		}
		var before string
		for n, line := range bytes.Split(f.text, []byte("\n")) {
			for _, a := range foreign(string(line), before) {
				if known(f.path, a) {
					met[a.String()] = true
					continue
				}
				t.Errorf("%s:%d: %s is of no documentation range: %s", f.path, n+1, a, bytes.TrimSpace(line))
			}
			before = string(line)
		}
	}
	for _, c := range constants {
		if !met[c.addr] {
			t.Errorf("%s (%s) stands nowhere: take it off the list", c.addr, c.meaning)
		}
	}
}

func known(path string, a netip.Addr) bool {
	for _, c := range constants {
		if netip.MustParseAddr(c.addr) == a && strings.HasPrefix(path, c.where) {
			return true
		}
	}
	return false
}

// foreign finds the addresses of a line that are of no free range. before is the
// line above.
func foreign(line, before string) (out []netip.Addr) {
	judge := func(s string) {
		a, err := netip.ParseAddr(s)
		if err == nil && !slices.ContainsFunc(freeRanges, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) }) {
			out = append(out, a)
		}
	}
	for _, s := range quad.FindAllString(line, -1) {
		s = strings.Trim(s, ".")
		// Sections have small numbers, and the document is named before.
		first, _, _ := strings.Cut(s, ".")
		if n, err := strconv.Atoi(first); err == nil && n < 10 && (section.MatchString(line) || section.MatchString(before)) {
			continue
		}
		judge(s)
	}
	for _, m := range bytesOf.FindAllStringSubmatch(line, -1) {
		b := m[1:]
		for i, s := range b {
			n, err := strconv.ParseUint(number.FindString(s), 0, 8)
			if err != nil {
				n = 1 // a variable
			}
			b[i] = strconv.FormatUint(n, 10)
		}
		judge(strings.Join(b, "."))
	}
	for _, s := range colons.FindAllString(line, -1) {
		judge(strings.TrimRight(s, "."))
	}
	return out
}

// The rule itself is tested, so that a slip in it cannot pass all.
func TestForeignAddresses(t *testing.T) {
	for _, c := range []struct {
		line, before string
		want         []string
	}{
		{line: "10.0.0.1", want: []string{"10.0.0.1"}},
		{line: `x := "172.20.1.2:53"`, want: []string{"172.20.1.2"}},
		{line: "route 192.168.0.0/16 via 8.8.8.8.", want: []string{"192.168.0.0", "8.8.8.8"}},
		{line: "ask 1.1.1.1 and 192.0.2.1", want: []string{"1.1.1.1"}},
		{line: "198.18.0.1 198.19.255.254 198.51.100.7 203.0.113.1 127.0.0.53 224.0.0.18 169.254.1.1 0.0.0.0"},
		{line: "198.20.0.1", want: []string{"198.20.0.1"}},
		{line: "fd12:3456::1/64", want: []string{"fd12:3456::1"}},
		{line: `dial("[2606:4700::1111]:53")`, want: []string{"2606:4700::1111"}},
		{line: "2001:db8::1 fe80::1 ff02::1 ::1 [::]:80 ::ffff:192.0.2.1"},
		{line: "::ffff:10.0.0.1", want: []string{"::ffff:10.0.0.1", "10.0.0.1"}},
		{line: "at 12:30:45 the MAC 02:00:00:00:00:01 of std::string"},
		{line: "as [MS-SSTP] 3.2.4.1 has it"},
		{line: "4.2.1.12 of it", before: "RFC 5280 says in"},
		{line: "4.2.1.12 of it", want: []string{"4.2.1.12"}},
		{line: "RFC 5280 at 45.2.1.12", want: []string{"45.2.1.12"}},
		{line: "version 1.2.3.4.5, v1.2.3.4 and 1.2.3"},
		{line: "netip.AddrFrom4([4]byte{10, 0, byte(i), 1})", want: []string{"10.0.1.1"}},
		{line: "netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})"},
		{line: "netip.AddrFrom4([4]byte{0xc0, 0xa8, 1, 1})", want: []string{"192.168.1.1"}},
		{line: "net.IPv4(172, 16, 0, 1)", want: []string{"172.16.0.1"}},
	} {
		var got []string
		for _, a := range foreign(c.line, c.before) {
			got = append(got, a.String())
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.line, got, c.want)
		}
	}
}
