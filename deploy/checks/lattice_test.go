package checks

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
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

// homes names the only folders that may import a library. deploy is exempt.
var homes = map[string][]string{
	"github.com/hashicorp/raft":       {"raft"},
	"go.etcd.io/bbolt":                {"raft"},
	"github.com/hashicorp/memberlist": {"cluster"},
	"github.com/cilium/ebpf":          {"dataplane"},
	"github.com/vishvananda/netlink":  {"dataplane"},
	"github.com/vishvananda/netns":    {"dataplane"},
	"github.com/google/nftables":      {"dataplane"},
	"github.com/osrg/gobgp":           {"bgp"},
	"github.com/spf13/cobra":          {"cmd"},
	"github.com/hashicorp/go-hclog":   {"raft"},
	"go.yaml.in/yaml":                 {"node"},
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
		}
	}
}

func forbidden(f goFile, path string) string {
	lvl, top := level(f.pkg)
	if lvl == 4 {
		return ""
	}
	if rest, ours := strings.CutPrefix(path, module); ours {
		l, t := level(rest)
		switch {
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
	if first, _, _ := strings.Cut(path, "/"); strings.Contains(first, ".") && lvl == 0 && !f.test {
		return "level 0 is standard library only"
	}
	for lib, allowed := range homes {
		if path != lib && !strings.HasPrefix(path, lib+"/") {
			continue
		}
		for _, home := range allowed {
			if top == home {
				return ""
			}
		}
		return "its one home is " + strings.Join(allowed, ", ")
	}
	return ""
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
	} {
		if got := forbidden(goFile{pkg: c.pkg}, c.path); (got != "") != c.bad {
			t.Errorf("%s importing %s: %q", c.pkg, c.path, got)
		}
	}
}
