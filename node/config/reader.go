package config

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// reader walks the YAML tree, keeps every fault and the line of every key.
type reader struct {
	faults []Fault
	lines  map[string]int
}

func (r *reader) fault(line int, key, format string, a ...any) {
	r.faults = append(r.faults, Fault{Line: line, Key: key, Text: fmt.Sprintf(format, a...)})
}

func (r *reader) sorted() []Fault {
	slices.SortStableFunc(r.faults, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
	return r.faults
}

// field is one key of a section and what reads its value.
type field struct {
	name     string
	required string // what to write when it is missing; empty: optional
	read     func(n *yaml.Node, key string)
}

// section reads a mapping: unknown, repeated and missing keys are faults.
func (r *reader) section(n *yaml.Node, key string, fields []field) {
	if n.Kind != yaml.MappingNode {
		r.fault(n.Line, key, "must be a section of \"key: value\" lines, not %s", shape(n))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], resolve(n.Content[i+1])
		path := join(key, k.Value)
		if first, again := seen[k.Value]; again {
			r.fault(k.Line, path, "is given twice, first in line %d; keep one of them", first)
			continue
		}
		seen[k.Value] = k.Line
		f := slices.IndexFunc(fields, func(f field) bool { return f.name == k.Value })
		if f < 0 {
			r.fault(k.Line, path, "is no key of the node file%s", suggest(key, k.Value, fields))
			continue
		}
		r.lines[path] = k.Line
		if v.Kind == yaml.ScalarNode && v.Tag == "!!null" {
			r.fault(k.Line, path, "has no value; write one or remove the key")
			continue
		}
		fields[f].read(v, path)
	}
	for _, f := range fields {
		if _, ok := seen[f.name]; !ok && f.required != "" {
			r.fault(n.Line, join(key, f.name), "is missing; %s", f.required)
		}
	}
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

func shape(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a section"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		return fmt.Sprintf("%q", n.Value)
	}
	return "this"
}

// text hands a scalar to set, whose error becomes the fault.
func (r *reader) text(set func(s string) error) func(*yaml.Node, string) {
	return func(n *yaml.Node, key string) {
		if n.Kind != yaml.ScalarNode {
			r.fault(n.Line, key, "must be a single value, not %s", shape(n))
			return
		}
		if err := set(n.Value); err != nil {
			r.fault(n.Line, key, "%s", err)
		}
	}
}

func (r *reader) name(dst *string) func(*yaml.Node, string) {
	return r.text(func(s string) error {
		ok := len(s) >= 1 && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
		for _, c := range []byte(s) {
			ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
		}
		if !ok {
			return fmt.Errorf("%q is not a name; use 1 to 63 of a-z, 0-9 and inner hyphens, such as n1", s)
		}
		*dst = s
		return nil
	})
}

func (r *reader) path(dst *string, maxLen int) func(*yaml.Node, string) {
	return r.text(func(s string) error {
		if !filepath.IsAbs(s) {
			return fmt.Errorf("%q is not an absolute path; begin it with /", s)
		}
		if len(s) > maxLen {
			return fmt.Errorf("is %d bytes long; use a path of at most %d", len(s), maxLen)
		}
		*dst = filepath.Clean(s)
		return nil
	})
}

func (r *reader) ifname(dst *string) func(*yaml.Node, string) {
	return r.text(func(s string) error {
		if s == "" || len(s) > maxIfName || s == "." || s == ".." || strings.ContainsAny(s, "/: \t") {
			return fmt.Errorf("%q is not an interface name (1 to %d bytes, no slash, colon or space); see: ip link", s, maxIfName)
		}
		if s == "lo" {
			return fmt.Errorf("lo carries no packets of others; write the interface towards them, see: ip link")
		}
		*dst = s
		return nil
	})
}

// addrPort reads an address that peers dial; without a port, defaultPort.
func (r *reader) addrPort(dst *netip.AddrPort, defaultPort uint16) func(*yaml.Node, string) {
	return r.text(func(s string) error {
		ap, err := netip.ParseAddrPort(s)
		if a, err2 := netip.ParseAddr(s); err != nil && err2 == nil {
			ap, err = netip.AddrPortFrom(a, defaultPort), nil
		}
		if err != nil {
			return fmt.Errorf("%q is not an IP address and port; write it as 198.51.100.1:%d (no host names: resolving them may need what has failed)", s, defaultPort)
		}
		if ap.Port() == 0 {
			return fmt.Errorf("%q has port 0; the other nodes dial it, so name one, such as %d", s, defaultPort)
		}
		if err := dialable(ap.Addr(), s); err != nil {
			return err
		}
		*dst = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		return nil
	})
}

func dialable(a netip.Addr, s string) error {
	if v4 := a.Unmap(); a.IsUnspecified() || a.IsMulticast() || v4.IsLoopback() || v4.Is4() && (v4.As4()[0] == 0 || v4.As4()[0] >= 240) {
		return fmt.Errorf("%q cannot be dialled by the other nodes; write this node's own address", s)
	}
	if a.Zone() != "" || a.Unmap().IsLinkLocalUnicast() {
		return fmt.Errorf("%q is a link-local address, which means something else on each node; write a global one, such as [2001:db8::1]:7950", s)
	}
	return nil
}

func (r *reader) addr(dst *netip.Addr) func(*yaml.Node, string) {
	return r.text(func(s string) error {
		a, err := netip.ParseAddr(s)
		if err != nil || a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("%q is not the IP address of a host; write it as 192.0.2.1 or 2001:db8::1", s)
		}
		*dst = a.Unmap()
		return nil
	})
}

// globalIPv6 reads this node's own address for others to send to.
func (r *reader) globalIPv6(dst *netip.Addr) func(*yaml.Node, string) {
	return r.text(func(s string) error {
		a, err := netip.ParseAddr(s)
		if err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() {
			return fmt.Errorf("%q is not a global IPv6 address; write this node's own towards the routers, such as 2001:db8::11", s)
		}
		*dst = a
		return nil
	})
}

func (r *reader) duration(dst *time.Duration, low, high, unit time.Duration, why string) func(*yaml.Node, string) {
	return r.text(func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil {
			return fmt.Errorf("%q is not a duration; write a number with its unit, such as %s", s, low)
		}
		if d < low || d > high {
			return fmt.Errorf("%s is outside %s to %s (%s)", s, low, high, why)
		}
		if d%unit != 0 {
			return fmt.Errorf("%s is not a multiple of %s (%s)", s, unit, why)
		}
		*dst = d
		return nil
	})
}

func (r *reader) number(low, high uint64, what string, set func(uint64)) func(*yaml.Node, string) {
	return r.text(func(s string) error {
		v, err := strconv.ParseUint(strings.ReplaceAll(s, "_", ""), 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number; write %s from %d to %d", s, what, low, high)
		}
		if v < low || v > high {
			return fmt.Errorf("%s is outside %d to %d; write %s in that range", s, low, high, what)
		}
		set(v)
		return nil
	})
}

// asn reads an AS number; reserved ones (RFC 7607, RFC 6793 section 9,
// RFC 7300) never come up with a router and are refused here.
func (r *reader) asn(dst *uint32) func(*yaml.Node, string) {
	return r.text(func(s string) error {
		v, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return fmt.Errorf("%q is not an AS number; write 1 to 4294967294, such as 65011", s)
		}
		switch v {
		case 0, 23456, 65535, math.MaxUint32:
			return fmt.Errorf("%d is a reserved AS number; use your own, or a private one from 64512 to 65534", v)
		}
		*dst = uint32(v)
		return nil
	})
}

func (r *reader) flag(dst *bool) func(*yaml.Node, string) {
	return r.text(func(s string) error {
		switch s {
		case "true", "false":
			*dst = s == "true"
			return nil
		}
		return fmt.Errorf("%q is neither true nor false; write one of them", s)
	})
}

// choice reads one word of a closed list.
func choice[T ~string](r *reader, dst *T, words ...T) func(*yaml.Node, string) {
	return r.text(func(s string) error {
		if slices.Contains(words, T(s)) {
			*dst = T(s)
			return nil
		}
		list := make([]string, len(words))
		for i, w := range words {
			list[i] = string(w)
		}
		return fmt.Errorf("%q is not allowed; write one of %s", s, strings.Join(list, ", "))
	})
}
