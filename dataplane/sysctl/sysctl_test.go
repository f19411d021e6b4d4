package sysctl

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeRoot makes the files of the settings with values as a fresh kernel has.
func fakeRoot(t *testing.T, wanted []Setting, value string) string {
	t.Helper()
	root := t.TempDir()
	for _, s := range wanted {
		p := filepath.Join(root, s.Key)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func value(t *testing.T, root, key string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, key))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestMendAndRestore(t *testing.T) {
	wanted := Wanted([]string{"eth0", "eth1"})
	root := fakeRoot(t, wanted, "7")
	k := New(root, filepath.Join(t.TempDir(), "sysctl.json"), wanted)
	changed, err := k.Mend()
	if err != nil || len(changed) != len(wanted) {
		t.Fatalf("Mend changed %d of %d: %v", len(changed), len(wanted), err)
	}
	for _, s := range wanted {
		if got := value(t, root, s.Key); got != s.Value {
			t.Errorf("%s is %s, want %s", s.Key, got, s.Value)
		}
	}
	if changed, err := k.Mend(); err != nil || len(changed) != 0 {
		t.Errorf("a second Mend changed %v: %v", changed, err)
	}
	// Somebody else's change is mended, but is not the original.
	key := wanted[2].Key
	if err := os.WriteFile(filepath.Join(root, key), []byte("9"), 0o644); err != nil {
		t.Fatal(err)
	}
	if changed, err := k.Mend(); err != nil || len(changed) != 1 {
		t.Errorf("Mend after a foreign change: %v, %v", changed, err)
	}
	if err := k.Restore(); err != nil {
		t.Fatal(err)
	}
	for _, s := range wanted {
		if got := value(t, root, s.Key); got != "7" {
			t.Errorf("%s restored to %s, want 7", s.Key, got)
		}
	}
}

func TestMendLeavesEquivalents(t *testing.T) {
	wanted := []Setting{{Key: "net/ipv4/conf/eth0/rp_filter", Value: "0", Also: []string{"2"}}}
	root := fakeRoot(t, wanted, "2")
	k := New(root, filepath.Join(t.TempDir(), "sysctl.json"), wanted)
	if changed, err := k.Mend(); err != nil || len(changed) != 0 {
		t.Errorf("loose reverse path filtering was changed: %v, %v", changed, err)
	}
}

func TestMendNamesWhatIsMissing(t *testing.T) {
	wanted := Wanted([]string{"eth0"})
	root := fakeRoot(t, wanted, "7")
	more := append(wanted, Setting{Key: "net/ipv4/conf/gone/forwarding", Value: "1"})
	k := New(root, filepath.Join(t.TempDir(), "sysctl.json"), more)
	changed, err := k.Mend()
	if err == nil || !strings.Contains(err.Error(), "net.ipv4.conf.gone.forwarding") {
		t.Errorf("error %v does not name the missing key", err)
	}
	if len(changed) != len(wanted) {
		t.Errorf("changed %d, want all %d others", len(changed), len(wanted))
	}
}

func TestContested(t *testing.T) {
	wanted := Wanted([]string{"eth0.5"})
	root := fakeRoot(t, wanted, "7")
	k := New(root, filepath.Join(t.TempDir(), "sysctl.json"), wanted)
	mend := func() {
		t.Helper()
		if _, err := k.Mend(); err != nil {
			t.Fatal(err)
		}
	}
	mend()
	if c := k.Contested(); len(c) != 0 {
		t.Errorf("the first values count as set back: %v", c)
	}
	key := "net/ipv4/conf/eth0.5/rp_filter"
	for i := range 3 {
		if err := os.WriteFile(filepath.Join(root, key), []byte("1"), 0o644); err != nil {
			t.Fatal(err)
		}
		mend()
		mend()
		if c := k.Contested(); len(c) != 1 || c[0].Key != "net.ipv4.conf.eth0/5.rp_filter" || c[0].Times != i+1 || c[0].Last.IsZero() {
			t.Errorf("set back %d times: %v", i+1, c)
		}
	}
}

// A damaged file of original values is said once and set aside; mending goes on.
func TestDamagedSavedSettings(t *testing.T) {
	wanted := Wanted([]string{"eth0"})
	root, saved := fakeRoot(t, wanted, "7"), filepath.Join(t.TempDir(), "sysctl.json")
	if err := os.WriteFile(saved, []byte(`{"net`), 0o600); err != nil {
		t.Fatal(err)
	}
	k := New(root, saved, wanted)
	changed, err := k.Mend()
	if err == nil || !strings.Contains(err.Error(), "set aside") || len(changed) != len(wanted) {
		t.Errorf("changed %d: %v", len(changed), err)
	}
	if _, err := k.Mend(); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if err := k.Restore(); err != nil {
		t.Errorf("restore: %v", err)
	}
}
