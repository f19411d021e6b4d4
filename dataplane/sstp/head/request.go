package head

import (
	"bytes"
	"strings"
)

// Limits of what a request may carry along, in bytes; with them the canonical
// form of a head is one that is taken, too.
const (
	maxQuery       = 2 << 10
	maxCookie      = 4 << 10
	maxHost        = 255
	maxCorrelation = 128
)

// Request is a client's head: what of it goes on to the server.
type Request struct {
	Query         string // with its question mark, byte for byte; empty: none
	Host          string
	Cookie        string // byte for byte
	CorrelationID string // byte for byte; some clients send malformed GUIDs
	// HasCookie and HasCorrelation tell a field that is empty from none.
	HasCookie, HasCorrelation bool
}

// ParseRequest reads a complete head, its empty line included. The error is a
// Reason. Fields that SSTP has no use for are checked and left out.
func ParseRequest(b []byte) (Request, error) {
	first, fields, err := lines(b)
	if err != nil {
		return Request{}, err
	}
	var r Request
	if r.Query, err = requestLine(first); err != nil {
		return Request{}, err
	}
	var length string
	var hasHost, hasLength bool
	for _, line := range fields {
		f, err := parseField(line)
		if err != nil {
			return Request{}, err
		}
		switch {
		case f.is("host"):
			err = only(&r.Host, &hasHost, f.value)
		case f.is("content-length"):
			err = only(&length, &hasLength, f.value)
		case f.is("cookie"):
			err = only(&r.Cookie, &r.HasCookie, f.value)
		case f.is("sstpcorrelationid"):
			err = only(&r.CorrelationID, &r.HasCorrelation, f.value)
		case f.is("transfer-encoding"):
			err = TransferEncoding
		}
		if err != nil {
			return Request{}, err
		}
	}
	switch {
	case length != Endless:
		return Request{}, BadLength
	case !goodHost(r.Host):
		return Request{}, BadHost
	case len(r.Cookie) > maxCookie || strings.Contains(r.Cookie, "\t"):
		return Request{}, BadCookie
	case len(r.CorrelationID) > maxCorrelation || !text(r.CorrelationID):
		return Request{}, BadCorrelation
	}
	return r, nil
}

// requestLine checks the first line and gives the query.
func requestLine(line []byte) (query string, err error) {
	method, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return "", BadLine
	}
	target, version, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return "", BadLine
	}
	path, query, hasQuery := strings.Cut(string(target), "?")
	if hasQuery {
		query = "?" + query
	}
	switch {
	case string(method) == "HEAD" && sstpPath(path):
		return "", Monitor
	case string(method) != Method:
		return "", BadMethod
	case !sstpPath(path):
		return "", BadPath
	case len(query) > maxQuery || !printable(query):
		return "", BadQuery
	case string(version) != "HTTP/1.1":
		return "", BadVersion
	}
	return query, nil
}

// sstpPath compares with Path: the GUID in any case, its braces also as %7B and
// %7D, as some monitors and libraries send them.
func sstpPath(path string) bool {
	const prefix, suffix = "/sra_", "/"
	guid, ok := strings.CutPrefix(path, prefix)
	if !ok {
		return false
	}
	if guid, ok = strings.CutSuffix(guid, suffix); !ok {
		return false
	}
	if guid, ok = cutBrace(guid, "{", "%7b"); !ok {
		return false
	}
	const digits = len("BA195980-CD49-458b-9E23-C84EE0ADCD75")
	if len(guid) < digits {
		return false
	}
	guid, rest := guid[:digits], guid[digits:]
	if rest, ok = cutBrace(rest, "}", "%7d"); !ok || rest != "" {
		return false
	}
	return strings.EqualFold(guid, Path[len(prefix)+1:len(prefix)+1+digits]) && printable(guid)
}

func cutBrace(s, plain, encoded string) (string, bool) {
	if rest, ok := strings.CutPrefix(s, plain); ok {
		return rest, true
	}
	if len(s) >= len(encoded) && strings.EqualFold(s[:len(encoded)], encoded) && printable(s[:len(encoded)]) {
		return s[len(encoded):], true
	}
	return s, false
}

// goodHost admits what a host with a port may look like, and nothing that could
// end a line or start a path.
func goodHost(s string) bool {
	if s == "" || len(s) > maxHost {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', strings.IndexByte("-._~:[]%", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// Append writes the head in its one canonical form.
func (r *Request) Append(b []byte) []byte {
	b = append(b, Method+" "+Path...)
	b = append(b, r.Query...)
	b = append(b, " HTTP/1.1\r\nContent-Length: "+Endless+"\r\nHost: "...)
	b = append(b, r.Host...)
	b = append(b, "\r\n"...)
	if r.HasCookie {
		b = append(append(append(b, "Cookie: "...), r.Cookie...), "\r\n"...)
	}
	if r.HasCorrelation {
		b = append(append(append(b, "SSTPCORRELATIONID: "...), r.CorrelationID...), "\r\n"...)
	}
	return append(b, "\r\n"...)
}
