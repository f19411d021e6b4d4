package node

import (
	"net/http/httptest"
	"strings"
	"testing"
)

// A node shows what Go and the kernel say of its process, also where it belongs to
// no cluster yet.
func TestProcessMetrics(t *testing.T) {
	n := &Node{process: newProcessMetrics()}
	w := httptest.NewRecorder()
	n.serveMetrics(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{"\ngo_goroutines ", "\nprocess_resident_memory_bytes ", "\nprocess_open_fds "} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%q is not shown", want)
		}
	}
}
