package checks

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"testing"
)

// clocks are the functions that may judge a measured time or a number of goroutines
// outside a bubble, with the reason why no load of the machine can fail them.
var clocks = map[string]string{
	"dataplane/bucket.program":            "it counts no run that lost its CPU in the middle; a slow machine counts fewer",
	"dataplane/sstp.TestParkedGoroutines": "it waits, with a bound, until goroutines have ended; load makes none",
}

// In a synctest bubble time is exact; anywhere else it is the machine's, and its other
// work counts, too. A test that fails by how long something took fails by luck: it waits
// for the condition with a generous bound, and prints the time.
func TestNoTimeIsJudgedOutsideBubbles(t *testing.T) {
	used := map[string]bool{}
	eachPackage(t, func(folder string, fset *token.FileSet, files []*ast.File) {
		for _, c := range judged(fset, files) {
			if name := folder + "." + c.in; clocks[name] != "" {
				used[name] = true
				continue
			}
			at := fset.Position(c.at)
			t.Errorf("%s:%d: %s judges a measured time outside a synctest bubble: wait with a bound, print the time", filepath.ToSlash(at.Filename), at.Line, c.in)
		}
	})
	for name := range clocks {
		if !used[name] {
			t.Errorf("%s judges no time: take it off the list", name)
		}
	}
}

// judged finds, in the test files of one package, comparisons with measured times and
// with numbers of goroutines that may run outside a bubble.
func judged(fset *token.FileSet, files []*ast.File) (out []sleeper) {
	units, free := unitsOf(fset, files)
	for _, u := range units {
		if free[u] {
			for _, at := range u.judges {
				out = append(out, sleeper{u.name, at})
			}
		}
	}
	return out
}

// measure notes a variable that holds a measured time.
func (s *scan) measure(a *ast.AssignStmt) {
	for i, rhs := range a.Rhs {
		id, ok := a.Lhs[min(i, len(a.Lhs)-1)].(*ast.Ident)
		if !ok || len(a.Lhs) != len(a.Rhs) || !s.measures(rhs) {
			continue
		}
		if o := s.info.Defs[id]; o != nil {
			s.measured[o] = true
		} else if o := s.info.Uses[id]; o != nil {
			s.measured[o] = true
		}
	}
}

// measures reports whether a value comes from a clock or from the scheduler.
func (s *scan) measures(e ast.Expr) (found bool) {
	ast.Inspect(e, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.CallExpr:
			found = found || isPkg(n.Fun, "time", "Since") || isPkg(n.Fun, "runtime", "NumGoroutine")
		case *ast.Ident:
			o := s.info.Uses[n]
			found = found || o != nil && s.measured[o]
		}
		return true
	})
	return found
}

// judges reports whether an expression compares what a clock or the scheduler said.
func (s *scan) judges(b *ast.BinaryExpr) bool {
	switch b.Op {
	case token.LSS, token.GTR, token.LEQ, token.GEQ, token.EQL, token.NEQ:
		return s.measures(b.X) || s.measures(b.Y)
	}
	return false
}

// The rule itself is tested.
func TestJudgedTimesAreFound(t *testing.T) {
	for name, c := range map[string]struct {
		code string
		want []string
	}{
		"plain":       {`func TestA(t T) { if time.Since(x) > 1 { t.Fail() } }`, []string{"TestA"}},
		"in a bubble": {`func TestA(t T) { synctest.Test(t, func(t T) { if time.Since(x) > 1 { t.Fail() } }) }`, nil},
		"a variable":  {`func TestA(t T) { if took := time.Since(x); took > 1 { t.Fail() } }`, []string{"TestA"}},
		"derived":     {`func TestA(t T) { took := time.Since(x); per := took / 7; if 3 < per { t.Fail() } }`, []string{"TestA"}},
		"printed":     {`func TestA(t T) { took := time.Since(x); t.Log(took) }`, nil},
		"a helper":    {`func TestA(t T) { quick() }; func quick() bool { return time.Since(x) < 1 }`, []string{"quick"}},
		"goroutines":  {`func TestA(t T) { n := runtime.NumGoroutine(); if runtime.NumGoroutine() > n { t.Fail() } }`, []string{"TestA"}},
	} {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, "a_test.go", "package p\nimport (\"time\"; \"runtime\"; \"testing/synctest\")\nvar x int\n"+c.code, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(name, err)
		}
		var got []string
		for _, s := range judged(fset, []*ast.File{f}) {
			got = append(got, s.in)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: found %q, want %q", name, got, c.want)
		}
	}
}
