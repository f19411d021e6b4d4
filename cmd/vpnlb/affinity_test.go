package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/node/admin"
)

// The command reads page after page and prints one list, in both forms.
func TestAffinityListPages(t *testing.T) {
	const records, pageSize = 25, 10
	path := filepath.Join(t.TempDir(), "admin.sock")
	s := admin.NewServer(path, slog.New(slog.DiscardHandler))
	asked := 0
	s.Get(admin.PathAffinityList, func(r *http.Request) (any, error) {
		asked++
		q := r.URL.Query()
		limit, _ := strconv.Atoi(q.Get("limit"))
		if limit == 0 || limit > pageSize {
			limit = pageSize
		}
		from, _ := strconv.Atoi(q.Get("after"))
		out := admin.Affinities{Total: records, Records: []admin.Affinity{}}
		if q.Get("backend") == "none" {
			return admin.Affinities{Records: []admin.Affinity{}}, nil
		}
		for i := from; i < min(from+limit, records); i++ {
			a := netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 1)})
			out.Records = append(out.Records, admin.Affinity{Client: a, Key: a.String(), VIP: "vpn", Class: "ike", Backend: "r1"})
		}
		if from+limit < records {
			out.Next = fmt.Sprint(from + limit)
		}
		return out, nil
	})
	ready := make(chan struct{})
	go s.Run(t.Context(), ready)
	<-ready
	list := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		root := newRoot()
		root.SetArgs(append([]string{"--socket", path, "affinity", "list"}, args...))
		root.SetOut(&out)
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	for limit, want := range map[int]int{0: records, 1: 1, 10: 10, 17: 17, 1000: records} {
		text := strings.Split(strings.TrimSpace(list("--limit", fmt.Sprint(limit))), "\n")
		if cut := want < records; cut != strings.Contains(text[len(text)-1], "of 25 shown") {
			t.Errorf("limit %d ends with %q", limit, text[len(text)-1])
		} else if cut {
			text = text[:len(text)-1]
		}
		if len(text) != want+1 || !strings.HasPrefix(text[0], "CLIENT") || !strings.HasPrefix(text[want], fmt.Sprintf("198.18.0.%d ", want)) {
			t.Errorf("limit %d: %d lines, the last %q", limit, len(text), text[len(text)-1])
		}
		got := list("-o", "json", "--limit", fmt.Sprint(limit))
		var decoded admin.Affinities
		if err := json.Unmarshal([]byte(got), &decoded); err != nil || decoded.Total != records || len(decoded.Records) != want {
			t.Errorf("limit %d: %d of %d records, %v", limit, len(decoded.Records), decoded.Total, err)
		}
		var whole bytes.Buffer
		enc := json.NewEncoder(&whole)
		enc.SetIndent("", "  ")
		if enc.Encode(decoded); got != whole.String() {
			t.Errorf("limit %d: not as other answers are written:\n%s", limit, got)
		}
	}
	if got := list("-o", "json", "--backend", "none"); strings.Join(strings.Fields(got), "") != `{"total":0,"records":[]}` {
		t.Errorf("an empty list is %s", got)
	}
	if asked == 0 {
		t.Error("nobody asked")
	}
}
