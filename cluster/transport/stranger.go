package transport

import (
	"crypto/tls"
	"errors"
	"io"
	"syscall"
)

// strangerHint says what is likely where the other side does not speak TLS as
// members do: something else listens there.
func strangerHint(err error) string {
	var record tls.RecordHeaderError
	if errors.Is(err, io.EOF) || errors.As(err, &record) || errors.Is(err, syscall.ECONNRESET) {
		return " (no member answers as one there: is it the port of cluster.address in its node file, 7950 by default, and not that of gossip?)"
	}
	return ""
}
