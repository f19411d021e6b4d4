package state

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestSentences holds the sentences of refusals: they are in snapshots and in
// hashes, so another wording is a change of what a command does (DESIGN.md).
// Whoever means one writes the list anew with -update, and says why in the commit.
func TestSentences(t *testing.T) {
	const golden = "testdata/sentences.txt"
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		name := f.Name()
		judges := strings.HasPrefix(name, "apply_") || slices.Contains([]string{"machine.go", "settings.go", "stance.go", "window.go", "lookup.go", "types.go"}, name)
		if !judges || strings.HasSuffix(name, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				if s, err := strconv.Unquote(l.Value); err == nil && strings.Contains(s, " ") {
					got = append(got, s)
				}
			}
			return true
		})
	}
	slices.Sort(got)
	got = slices.Compact(got)
	if *update {
		if err := os.WriteFile(golden, []byte(strings.Join(got, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	for _, s := range want {
		if !slices.Contains(got, s) {
			t.Errorf("gone, or in other words: %q", s)
		}
	}
	for _, s := range got {
		if !slices.Contains(want, s) {
			t.Errorf("new: %q", s)
		}
	}
}
