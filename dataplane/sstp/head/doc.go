// Package head reads and writes the two HTTP heads of an SSTP connection
// ([MS-SSTP] 3.2.4.1, 4.1): the client's SSTP_DUPLEX_POST and the server's
// answer. Their Content-Length of 2^64-1 is refused by net/http, and SSTP needs
// almost nothing of HTTP, so this is a parser for exactly these two heads.
//
// It is strict: what it does not know to be harmless is a Reason, and the
// writers produce one canonical form, so that two parsers can not read one head
// in two ways. Pure functions of bytes, safe for concurrent use.
package head

import "bytes"

const (
	// MaxBytes bounds a head with its empty line.
	MaxBytes = 8 << 10
	// MaxFields bounds the fields of a head; clients send three or four.
	MaxFields = 64
	// Endless is the Content-Length of both directions: 2^64-1.
	Endless = "18446744073709551615"
	// Path is where SSTP lives, in the form that [MS-SSTP] 3.2.4.1 prints.
	Path = "/sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/"
	// Method of the only request.
	Method = "SSTP_DUPLEX_POST"
)

var blank = []byte("\r\n\r\n")

// End finds the end of the head that b starts with: the index behind its empty
// line, or -1. The first seen bytes were searched before.
func End(b []byte, seen int) int {
	from := max(0, min(seen, len(b))-len(blank)+1)
	if i := bytes.Index(b[from:], blank); i >= 0 {
		return from + i + len(blank)
	}
	return -1
}
