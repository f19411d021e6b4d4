package head

import (
	"bytes"
	"strings"
)

// lines cuts a complete head into its first line and its fields' lines, without
// line ends. Every line ends with CR LF, and neither stands anywhere else.
func lines(b []byte) (first []byte, fields [][]byte, err error) {
	end := End(b, 0)
	switch {
	case len(b) > MaxBytes:
		return nil, nil, TooLarge
	case end < 0:
		return nil, nil, Incomplete
	case end != len(b):
		return nil, nil, BadLine // more than one head
	}
	fields = make([][]byte, 0, 8)
	b = b[:len(b)-len("\r\n")]
	for len(b) > 0 {
		at := bytes.IndexByte(b, '\r')
		if at < 0 || at+1 == len(b) || b[at+1] != '\n' || bytes.IndexByte(b[:at], '\n') >= 0 {
			return nil, nil, BadLineEnding
		}
		line := b[:at]
		b = b[at+len("\r\n"):]
		if first == nil {
			first = line
			continue
		}
		if len(fields) == MaxFields {
			return nil, nil, TooManyFields
		}
		if line[0] == ' ' || line[0] == '\t' {
			return nil, nil, Folded
		}
		fields = append(fields, line)
	}
	if len(first) == 0 {
		return nil, nil, BadLine
	}
	return first, fields, nil
}

// field is one line of a head.
type field struct{ name, value []byte }

// is compares names without regard to case.
func (f field) is(name string) bool {
	return len(f.name) == len(name) && strings.EqualFold(string(f.name), name)
}

func parseField(line []byte) (field, error) {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || len(name) == 0 {
		return field{}, BadName
	}
	for _, c := range name {
		if !tokenChar(c) {
			return field{}, BadName
		}
	}
	value = bytes.Trim(value, " \t")
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return field{}, BadValue
		}
	}
	return field{name, value}, nil
}

// tokenChar is tchar of RFC 9110 5.6.2.
func tokenChar(c byte) bool {
	switch {
	case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// only takes the value of a field that may stand once.
func only(at *string, seen *bool, value []byte) error {
	if *seen {
		return Duplicate
	}
	*at, *seen = string(value), true
	return nil
}

// printable reports whether s has only visible ASCII, from '!' to '~'.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// text reports whether s has only visible ASCII and spaces.
func text(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
