package checks

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strings"
	"testing"
)

const maxLines = 500

var (
	generated  = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)
	packageDoc = regexp.MustCompile(`(?m)^(//.*|.*\*/)\npackage `)
	banned     = map[string]bool{"util": true, "utils": true, "common": true, "helper": true, "helpers": true, "manager": true, "base": true, "misc": true}
)

func TestTidy(t *testing.T) {
	documented := map[string]bool{}
	packages := map[string]bool{}
	for _, f := range goFiles(t) {
		src, err := os.ReadFile(f.path)
		if err != nil {
			t.Fatal(err)
		}
		if banned[path.Base(f.pkg)] {
			t.Errorf("%s: the folder's name says nothing about what it holds", f.path)
		}
		if f.test || generated.Match(src) {
			continue
		}
		packages[f.pkg] = true
		if packageDoc.Match(src) {
			documented[f.pkg] = true
		}
	}
	for pkg := range packages {
		if !documented[pkg] {
			t.Errorf("%s has no package comment", pkg)
		}
	}
}

func TestTopFoldersHaveDesign(t *testing.T) {
	for _, dir := range []string{"node", "cluster", "raft", "dataplane", "bgp", "cmd", "deploy"} {
		if _, err := os.Stat("../../" + dir + "/DESIGN.md"); err != nil {
			t.Errorf("%s: no DESIGN.md", dir)
		}
	}
	for _, file := range []string{"README.md", "ARCHITECTURE.md", "LICENSE"} {
		if _, err := os.Stat("../../" + file); err != nil {
			t.Errorf("no %s", file)
		}
	}
}

// Whatever people read and write is short: Go, C, scripts, documents.
func TestFilesAreShort(t *testing.T) {
	kinds := map[string]int{}
	for _, f := range textFiles(t) {
		if generated.Match(f.text) || path.Ext(f.path) == ".golden" { // written by tests
			continue
		}
		kinds[path.Ext(f.path)]++
		if n := bytes.Count(f.text, []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, more than %d: look for the missing type", f.path, n, maxLines)
		}
	}
	for _, kind := range []string{".go", ".c", ".h", ".md", ".txtar", ""} {
		if kinds[kind] == 0 {
			t.Errorf("no file called *%s was looked at", kind)
		}
	}
}

// textFile is a file that people wrote; its path is relative to the module root.
type textFile struct {
	path string
	text []byte
}

// textFiles are those of the repository and those that are about to be: not what
// git ignores, binaries, sums, the licence's letter and recorded inputs.
func textFiles(t *testing.T) []textFile {
	t.Helper()
	list, err := exec.Command("git", "-C", "../..", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	var out []textFile
	for name := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		if name == "go.sum" || name == "LICENSE" || strings.Contains(name, "testdata/fuzz/") {
			continue
		}
		text, err := os.ReadFile("../../" + name)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, and git does not know yet
		}
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(text, 0) < 0 {
			out = append(out, textFile{name, text})
		}
	}
	if len(out) < 100 {
		t.Fatalf("found only %d files", len(out))
	}
	return out
}
