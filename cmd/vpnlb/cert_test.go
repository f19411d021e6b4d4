package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A binary file is named here: as a JSON string its bytes would reach the node changed.
func TestPEMFile(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"a PFX", "\x30\x82\x01\x03\x02\x01\x03" + strings.Repeat("\xa0", 0x100), "openssl pkcs12 -in FILE"},
		{"a certificate in DER", "\x30\x82\x01\x02\x30\x00" + strings.Repeat("\xa0", 0x100), "openssl x509 -inform der"},
		{"PEM", "-----BEGIN CERTIFICATE-----\n", ""},
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := pemFile(path)
		switch {
		case tt.want == "" && (err != nil || got != tt.text):
			t.Errorf("%s: %q, %v", tt.name, got, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path)):
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
