package sstp

import (
	"net/http"
	"strconv"
)

// printableField reports whether s can stand in a field of an HTTP head.
func printableField(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= 256
}

// decoyHead is the whole answer to what is no SSTP, its body included.
func (v *service) decoyHead() []byte {
	d := v.Decoy
	if d.Status == 0 {
		d.Status = http.StatusNotFound
	}
	b := append([]byte("HTTP/1.1 "), strconv.Itoa(d.Status)...)
	b = append(append(b, ' '), http.StatusText(d.Status)...)
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(d.Body)), 10)
	if d.Type != "" {
		b = append(append(b, "\r\nContent-Type: "...), d.Type...)
	}
	return append(append(b, "\r\nConnection: close\r\n\r\n"...), d.Body...)
}
