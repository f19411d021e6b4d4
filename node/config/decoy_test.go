package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The page is read with the node file, and what is wrong with it is told like any
// other fault.
func TestDecoyFile(t *testing.T) {
	dir := t.TempDir()
	page, node := filepath.Join(dir, "page.html"), filepath.Join(dir, "node.yaml")
	example, err := os.ReadFile("../../deploy/vpnlb.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(example), "  # decoy_file: /etc/vpnlb/decoy.html", "  decoy_file: "+page, 1)
	if err := os.WriteFile(node, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		size  int // -1: no file
		fault string
	}{
		{-1, "does not exist; write a small HTML page into it"},
		{0, "has 0 bytes; a page of 1 to 16384 is sent"},
		{MaxDecoy + 1, "has 16385 bytes"},
		{MaxDecoy, ""},
	} {
		if c.size >= 0 {
			if err := os.WriteFile(page, []byte(strings.Repeat("x", c.size)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Load(node)
		switch {
		case c.fault == "" && (err != nil || len(got.SSTP.Decoy) != c.size):
			t.Errorf("%d bytes: %v", c.size, err)
		case c.fault != "" && (err == nil || !strings.Contains(err.Error(), "sstp.decoy_file") || !strings.Contains(err.Error(), c.fault)):
			t.Errorf("%d bytes: %v, want %q", c.size, err, c.fault)
		}
	}
}
