package sstppeer

import (
	"os"
	"path/filepath"
	"testing"
)

// What sstpc 1.0.18 was seen to say.
func TestArgumentsOfSSTPC(t *testing.T) {
	file := filepath.Join(t.TempDir(), "options")
	if err := os.WriteFile(file, []byte("# made by sstpc\npassword \"Passw0rd \\\"lab\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := parsePPPD([]string{"38400", "user", "c1", "file", file, "noauth"})
	if err != nil || a.user != "c1" || a.password != `Passw0rd "lab` {
		t.Errorf("%+v, %v", a, err)
	}
	for _, args := range [][]string{nil, {"38400", "user", "c1"}, {"file", file}, {"user", "c1", "file", file + ".gone"}, {"user"}} {
		if _, err := parsePPPD(args); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}
