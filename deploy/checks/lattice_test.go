package checks

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/vpnlb/vpnlb/"

// level gives the level of a package (path relative to the module) and the
// top folder whose siblings it may not import.
func level(pkg string) (int, string) {
	top, _, _ := strings.Cut(pkg, "/")
	for _, leaf := range []string{"cluster/state", "dataplane/maglev", "dataplane/ike", "dataplane/table", "dataplane/model", "dataplane/bucket"} {
		if pkg == leaf || strings.HasPrefix(pkg, leaf+"/") {
			return 0, top
		}
	}
	switch top {
	case "raft", "cluster", "dataplane", "bgp":
		return 1, top
	case "node":
		return 2, top
	case "cmd":
		return 3, top
	}
	return 4, top // deploy: outside
}

// homes names the only folders that may import a library, by the beginning of its
// path: the longest one counts. What no line covers may be imported by nobody.
// The laboratory plays all the parts around a node and may import whatever is here.
var homes = map[string][]string{
	"github.com/hashicorp/raft":                               {"raft"},
	"go.etcd.io/bbolt":                                        {"raft/boltstore"},
	"github.com/hashicorp/go-hclog":                           {"raft"},
	"github.com/hashicorp/memberlist":                         {"cluster"},
	"github.com/cilium/ebpf":                                  {"dataplane"},
	"github.com/vishvananda/netlink":                          {"dataplane"},
	"github.com/vishvananda/netns":                            {"dataplane"}, // of tests
	"github.com/google/nftables":                              {"dataplane"},
	"golang.org/x/crypto/ocsp":                                {"dataplane/sstp/staple"},
	"github.com/osrg/gobgp/v3":                                {"bgp"},
	"google.golang.org/protobuf/types/known/anypb":            {"bgp"}, // the form of gobgp's attributes
	"github.com/spf13/cobra":                                  {"cmd"},
	"github.com/rogpeppe/go-internal/testscript":              {"cmd"}, // of tests
	"go.yaml.in/yaml/v3":                                      {"node/config"},
	"github.com/prometheus/client_golang/prometheus":          {"bgp", "cluster", "dataplane/sstp", "node", "raft"},
	"github.com/prometheus/client_golang/prometheus/promhttp": {"node"},
	"github.com/prometheus/client_golang/prometheus/testutil": {"dataplane/sstp"}, // of tests
	"golang.org/x/sys/unix":                                   {"bgp", "cluster", "cmd", "dataplane", "node"},
	"golang.org/x/crypto/md4":                                 {"deploy/lab/sstppeer"},
	"golang.org/x/net/ipv4":                                   {"deploy/lab/peer"},
}

type goFile struct {
	path, pkg string // relative to the module root; pkg is its folder
	test      bool
}

func goFiles(t *testing.T) []goFile {
	t.Helper()
	var out []goFile
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".go") {
			rel, _ := filepath.Rel("../..", path)
			out = append(out, goFile{path: path, pkg: filepath.ToSlash(filepath.Dir(rel)), test: strings.HasSuffix(path, "_test.go")})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 10 {
		t.Fatalf("found only %d Go files: is the test run in its folder?", len(out))
	}
	return out
}

func TestImportLattice(t *testing.T) {
	used := map[string]bool{}
	for _, f := range goFiles(t) {
		parsed, err := parser.ParseFile(token.NewFileSet(), f.path, nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, spec := range parsed.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			if why := forbidden(f, path); why != "" {
				t.Errorf("%s imports %s: %s", f.path, path, why)
			}
			if lib := library(path); lib != "" && slices.ContainsFunc(homes[lib], func(home string) bool { return below(f.pkg, home) }) {
				used[lib] = true
			}
		}
	}
	for lib := range homes {
		if !used[lib] {
			t.Errorf("%s is not imported at home: take it off the list", lib)
		}
	}
}

// library finds the line of homes that covers an import; "": none does.
func library(path string) (found string) {
	for lib := range homes {
		if below(path, lib) && len(lib) > len(found) {
			found = lib
		}
	}
	return found
}

// below reports whether a path is another one or lies below it.
func below(path, top string) bool { return path == top || strings.HasPrefix(path, top+"/") }

func forbidden(f goFile, path string) string {
	lvl, top := level(f.pkg)
	if rest, ours := strings.CutPrefix(path, module); ours {
		l, t := level(rest)
		switch {
		case lvl == 4:
			return ""
		case l == 4 && lvl == 3 && strings.HasPrefix(rest, "deploy/lab"):
			return ""
		case l == 4:
			return "only cmd/vpnlb may import the laboratory"
		case l > lvl:
			return "imports go downwards only"
		case l == 1 && lvl == 1 && t != top:
			return "siblings of level 1 meet in node"
		}
		return ""
	}
	if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") {
		return "" // standard library
	}
	lib := library(path)
	switch {
	case lib == "":
		return "no folder is named as this library's home"
	case lvl == 0 && !f.test:
		return "level 0 is standard library only"
	case lvl == 4 || slices.ContainsFunc(homes[lib], func(home string) bool { return below(f.pkg, home) }):
		return ""
	}
	return "its one home is " + strings.Join(homes[lib], ", ")
}

// The rules themselves are tested, so that a slip in them cannot pass all.
func TestForbidden(t *testing.T) {
	for _, c := range []struct {
		pkg, path string
		bad       bool
	}{
		{"raft", module + "cluster/state", false},
		{"raft", module + "cluster", true},
		{"cluster/health", module + "cluster/state", false},
		{"cluster/health", module + "dataplane", true},
		{"dataplane/model", module + "dataplane/table", false},
		{"dataplane/model", module + "dataplane", true},
		{"dataplane/model", "github.com/cilium/ebpf", true},
		{"node", "go.etcd.io/bbolt", true},
		{"node", module + "cmd/vpnlb", true},
		{"node", module + "deploy/lab", true},
		{"cmd/vpnlb", module + "deploy/lab", false},
		{"deploy/lab", "github.com/cilium/ebpf", false},
		{"bgp", "github.com/osrg/gobgp/v3/pkg/server", false},
		{"cluster", "github.com/osrg/gobgp/v3/pkg/server", true},
		{"raft", "github.com/prometheus/client_golang/prometheus", false},
		{"raft", "github.com/prometheus/client_golang/prometheus/promhttp", true},
		{"raft", "golang.org/x/crypto/ocsp", true},
		{"dataplane/sstp/staple", "golang.org/x/crypto/ocsp", false},
		{"dataplane/sstp", "golang.org/x/crypto/ocsp", true},
		{"raft", "golang.org/x/net/ipv4", true},
		{"raft", "github.com/rogpeppe/go-internal/testscript", true},
		{"raft", "github.com/miekg/dns", true},
		{"deploy/lab", "github.com/miekg/dns", true},
		{"deploy/lab", module + "node/admin", false},
		{"raft", "github.com/hashicorp/raft-boltdb", true},
		{"raft/boltstore", "go.etcd.io/bbolt", false},
		{"raft", "encoding/binary", false},
	} {
		if got := forbidden(goFile{pkg: c.pkg}, c.path); (got != "") != c.bad {
			t.Errorf("%s importing %s: %q", c.pkg, c.path, got)
		}
	}
}
