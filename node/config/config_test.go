package config

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden reads every testdata/*.yaml and compares the result, or the
// faults, with the golden file beside it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, strings.TrimSuffix(f, ".yaml")+".golden", describe(Parse(data)))
		})
	}
}

func compare(t *testing.T, golden, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", golden, got, want)
	}
}

func describe(c *Config, faults []Fault) string {
	var b strings.Builder
	for _, f := range faults {
		fmt.Fprintln(&b, f)
	}
	if c == nil {
		return b.String()
	}
	fmt.Fprintf(&b, "name %s\ndata_dir %s\nadmin_socket %s\n", c.Name, c.DataDir, c.AdminSocket)
	fmt.Fprintf(&b, "cluster %s gossip %s heartbeat %s\n", c.Cluster.Address, c.Cluster.Gossip, c.Cluster.Heartbeat)
	fmt.Fprintf(&b, "dataplane %s %v attach %s max_clients %d\n", c.Dataplane.PinDir, c.Dataplane.Interfaces(), c.Dataplane.Attach, c.Dataplane.MaxClients)
	fmt.Fprintf(&b, "bgp %v asn %d router_id %s next_hop6 %s hold_up %s prepend %d listen_port %d\n", c.BGP.Enabled(), c.BGP.ASN, c.BGP.RouterID, c.BGP.NextHop6,
		c.BGP.HoldUp, c.BGP.Prepend, c.BGP.ListenPort)
	for _, n := range c.BGP.Neighbours {
		fmt.Fprintf(&b, "neighbour %s asn %d hold %s local %s next_hop6 %s port %d passive %v ttl_security %v multihop_ttl %d password_file %q\n",
			n.Address, n.ASN, n.HoldTime, n.LocalAddress, n.NextHop6, n.Port, n.Passive, n.TTLSecurity, n.MultihopTTL, n.PasswordFile)
	}
	fmt.Fprintf(&b, "sstp drain %s spread %s connections %d per_source %d decoy_file %q\n", c.SSTP.Drain, c.SSTP.Spread, c.SSTP.Connections, c.SSTP.PerSource, c.SSTP.DecoyFile)
	fmt.Fprintf(&b, "log %s %s\n", c.Log.Level, c.Log.Format)
	return b.String()
}

// TestExample holds the file people start from to what the code accepts, and
// to the defaults that its commented lines state.
func TestExample(t *testing.T) {
	const path = "../../deploy/vpnlb.example.yaml"
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		bare := strings.TrimLeft(line, " ")
		key, _, found := strings.Cut(strings.TrimPrefix(bare, "# "), ": ")
		known := places[key] != "" && !strings.Contains(key, " ")
		if strings.HasPrefix(bare, "# ") && found && known && key != "password_file" && key != "local_address" && key != "next_hop6" && key != "decoy_file" {
			line = strings.Replace(line, "# ", "", 1)
		}
		lines = append(lines, line)
	}
	full, faults := Parse([]byte(strings.Join(lines, "")))
	if len(faults) > 0 {
		t.Fatalf("with every default written out: %v", faults)
	}
	if got, want := describe(full, nil), describe(c, nil); got != want {
		t.Errorf("the stated defaults differ from the real ones:\n%s\nreal:\n%s", got, want)
	}
	if strings.Count(strings.Join(lines, ""), "#") >= strings.Count(string(data), "#") {
		t.Error("no commented default was found")
	}
}

func TestPasswordFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, c := range []struct {
		name, path, want string
	}{
		{"good", write("good", "s3cret\n", 0o600), ""},
		{"readable", write("readable", "s3cret", 0o640), "has mode 0640"},
		{"missing", filepath.Join(dir, "missing"), "does not exist"},
		{"empty", write("empty", "\n", 0o600), "is empty"},
		{"long", write("long", strings.Repeat("x", 81), 0o600), "more than 80 bytes"},
		{"longest", write("longest", strings.Repeat("x", 80)+"\r\n", 0o600), ""},
		{"lines", write("lines", "a\nb\n", 0o600), "more than one line"},
		{"folder", dir, "is not a regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := "name: n1\ncluster: {address: '198.51.100.1'}\ndataplane: {outside: eth0}\n" +
				"bgp:\n  asn: 65011\n  router_id: 192.0.2.11\n  neighbours:\n" +
				"    - {address: 192.0.2.1, asn: 64999}\n    - address: 192.0.2.2\n      asn: 64999\n      password_file: " + c.path + "\n"
			cfg, err := Load(write("node.yaml", text, 0o644))
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if p := cfg.BGP.Neighbours[1].Password; p == "" || strings.Contains(fmt.Sprintf("%v %+v %#v %s", cfg, cfg, cfg, p), string(p)) {
					t.Errorf("password not read, or it prints itself")
				}
				return
			}
			var inv *InvalidError
			if !errors.As(err, &inv) || len(inv.Faults) != 1 {
				t.Fatalf("got %v", err)
			}
			f := inv.Faults[0]
			if !strings.Contains(f.Text, c.want) || f.Line != 11 || f.Key != "bgp.neighbours[1].password_file" {
				t.Errorf("got %v", f)
			}
		})
	}
}

func TestLoadMissing(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestDefaultsAreAllowed(t *testing.T) {
	if DefaultHeartbeat < MinHeartbeat || DefaultHoldTime < MinHoldTime || DefaultHoldTime%time.Second != 0 ||
		DefaultMaxClients < MinMaxClients || DefaultMaxClients > MaxMaxClients {
		t.Error("a default is outside its own limits")
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, p := range files {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, faults := Parse(data)
		if (c == nil) != (len(faults) > 0) {
			t.Fatalf("config %v with faults %v", c, faults)
		}
		if c != nil && (c.Name == "" || !c.Cluster.Address.IsValid() || !c.Cluster.Gossip.IsValid() || c.Dataplane.Inside == "") {
			t.Fatalf("incomplete: %+v", c)
		}
	})
}
