package checks

import (
	"bytes"
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
	sleep      = regexp.MustCompile(`\btime\.Sleep\(`)
	banned     = map[string]bool{"util": true, "utils": true, "common": true, "helper": true, "helpers": true, "manager": true, "base": true, "misc": true}
)

func TestTidy(t *testing.T) {
	// In a synctest bubble sleeping is how virtual time passes; anywhere else it
	// is a guess. Helpers of a package's bubbles may stand in a file of their own.
	bubbles := map[string]bool{}
	for _, f := range goFiles(t) {
		if src, err := os.ReadFile(f.path); err == nil && f.test && bytes.Contains(src, []byte("synctest.Test(")) {
			bubbles[f.pkg] = true
		}
	}
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
		if generated.Match(src) {
			continue
		}
		if n := bytes.Count(src, []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, more than %d: look for the missing type", f.path, n, maxLines)
		}
		if f.test {
			if sleep.Match(src) && !bubbles[f.pkg] {
				t.Errorf("%s sleeps in a test outside a synctest bubble: poll with a bound", f.path)
			}
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

// Test and example traffic stays in the documentation and benchmark ranges.
func TestNoPrivateAddresses(t *testing.T) {
	out, err := exec.Command("git", "-C", "../..", "grep", "-nIE",
		`\b(10\.[0-9]+\.[0-9]+\.[0-9]+|192\.168\.[0-9]+\.[0-9]+|172\.(1[6-9]|2[0-9]|3[01])\.[0-9]+\.[0-9]+)\b`,
		"--", "*.go", "*.sh", "*.txtar", "*.yaml", "*.md").Output()
	if err == nil {
		t.Errorf("private addresses:\n%s", out)
	} else if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 || strings.TrimSpace(string(exit.Stderr)) != "" {
		t.Fatalf("git grep: %v", err)
	}
}
