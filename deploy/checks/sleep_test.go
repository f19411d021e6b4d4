package checks

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pauses are the functions that may wait for real time, with the reason.
var pauses = map[string]string{
	"deploy/lab.pause":                        "for how long traffic flows is what its tests vary, and real traffic has no virtual time",
	"dataplane/gateway.TestInterfaceMadeAnew": "it plays a supervisor, who waits between two runs",
}

// In a synctest bubble sleeping is how virtual time passes; anywhere else it is a
// guess. time.Sleep is looked for, and waiting for nothing but a timer.
func TestNoSleepOutsideBubbles(t *testing.T) {
	used := map[string]bool{}
	eachPackage(t, func(folder string, fset *token.FileSet, files []*ast.File) {
		for _, s := range sleeps(fset, files) {
			if name := folder + "." + s.in; pauses[name] != "" {
				used[name] = true
				continue
			}
			at := fset.Position(s.at)
			t.Errorf("%s:%d: %s waits for time to pass outside a synctest bubble: poll with a bound", filepath.ToSlash(at.Filename), at.Line, s.in)
		}
	})
	for name := range pauses {
		if !used[name] {
			t.Errorf("%s waits for no time: take it off the list", name)
		}
	}
}

// eachPackage parses the module's packages, tests and all.
func eachPackage(t *testing.T, look func(folder string, fset *token.FileSet, files []*ast.File)) {
	t.Helper()
	type key struct{ folder, name string }
	packages := map[key][]*ast.File{}
	fset := token.NewFileSet()
	for _, f := range goFiles(t) {
		parsed, err := parser.ParseFile(fset, f.path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			continue
		}
		k := key{f.pkg, parsed.Name.Name}
		packages[k] = append(packages[k], parsed)
	}
	for k, files := range packages {
		look(k.folder, fset, files)
	}
}

// sleeper is a place that waits for real time, or judges one.
type sleeper struct {
	in string // the function
	at token.Pos
}

// unit is one function of a package's tests, or all that stands outside of any.
type unit struct {
	name     string // "" outside of any
	object   types.Object
	receiver types.Object // the type of a method
	sleeps   []token.Pos
	judges   []token.Pos           // a measured time
	wants    map[types.Object]bool // named outside a bubble
	bubbled  map[types.Object]bool // named inside one
}

// scan reads the tests of one package.
type scan struct {
	info     types.Info
	wrappers map[types.Object]bool
	measured map[types.Object]bool // variables that hold a measured time
}

// sleeps finds, in the test files of one package, what waits for time though it may
// be run outside a bubble. A helper runs in bubbles alone if whoever names it does.
func sleeps(fset *token.FileSet, files []*ast.File) (out []sleeper) {
	units, free := unitsOf(fset, files)
	for _, u := range units {
		if free[u] {
			for _, at := range u.sleeps {
				out = append(out, sleeper{u.name, at})
			}
		}
	}
	return out
}

// unitsOf reads the functions of one package's test files, and tells which of them may
// run outside a bubble.
func unitsOf(fset *token.FileSet, files []*ast.File) (units []*unit, free map[*unit]bool) {
	s := scan{
		info:     types.Info{Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}},
		wrappers: map[types.Object]bool{}, measured: map[types.Object]bool{},
	}
	// What is imported stays unknown: only the package's own functions matter here.
	conf := types.Config{Importer: nothing{}, Error: func(error) {}}
	conf.Check("p", fset, files, &s.info)
	s.findWrappers(files)
	for _, f := range files {
		if name := fset.Position(f.Package).Filename; !strings.HasSuffix(name, "_test.go") {
			continue
		}
		rest := newUnit()
		units = append(units, rest)
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				s.read(rest, d, false)
				continue
			}
			units = append(units, s.function(fn))
		}
	}
	return units, outsideBubbles(units)
}

// nothing imports packages without a content.
type nothing struct{}

func (nothing) Import(path string) (*types.Package, error) {
	p := types.NewPackage(path, filepath.Base(path))
	p.MarkComplete()
	return p, nil
}

func newUnit() *unit {
	return &unit{wants: map[types.Object]bool{}, bubbled: map[types.Object]bool{}}
}

func (s *scan) function(fn *ast.FuncDecl) *unit {
	u := newUnit()
	u.name, u.object = fn.Name.Name, s.info.Defs[fn.Name]
	if fn.Recv != nil && len(fn.Recv.List) == 1 {
		if id := typeIdent(fn.Recv.List[0].Type); id != nil {
			u.receiver = s.info.Uses[id]
		}
	}
	if fn.Body != nil {
		s.read(u, fn.Body, false)
	}
	return u
}

// outsideBubbles tells which functions may be run outside a bubble: what the go
// command calls, what nobody names, and what these name outside a bubble.
func outsideBubbles(units []*unit) map[*unit]bool {
	named := map[types.Object]bool{}
	for _, u := range units {
		maps.Copy(named, u.wants)
		maps.Copy(named, u.bubbled)
	}
	free := map[*unit]bool{}
	var walk func(u *unit)
	walk = func(u *unit) {
		if free[u] {
			return
		}
		free[u] = true
		for _, v := range units {
			// A method that no test names is called through an interface by whoever
			// makes its receiver.
			if v.name != "" && (u.wants[v.object] || !named[v.object] && v.receiver != nil && u.wants[v.receiver]) {
				walk(v)
			}
		}
	}
	for _, u := range units {
		if u.name == "" || entry(u) || !named[u.object] && !named[u.receiver] {
			walk(u)
		}
	}
	return free
}

// entry reports whether the go command calls a function.
func entry(u *unit) bool {
	if u.receiver != nil {
		return false
	}
	for _, p := range []string{"Test", "Benchmark", "Fuzz", "Example"} {
		if strings.HasPrefix(u.name, p) {
			return true
		}
	}
	return u.name == "init"
}

// read notes what a piece of code names and where it sleeps.
func (s *scan) read(u *unit, n ast.Node, bubble bool) {
	bounds := map[ast.Node]bool{}
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if !bubble && s.opensBubble(n) {
				for _, a := range n.Args {
					s.read(u, a, true)
				}
				s.read(u, n.Fun, false)
				return false
			}
		case *ast.SelectStmt:
			if patient(n) {
				for _, c := range n.Body.List {
					bounds[timerOf(c.(*ast.CommClause).Comm)] = true
				}
			}
		case *ast.AssignStmt:
			s.measure(n)
		case *ast.BinaryExpr:
			if !bubble && s.judges(n) {
				u.judges = append(u.judges, n.Pos())
			}
		case *ast.UnaryExpr:
			if isTimer(n) && !bounds[n] && !bubble {
				u.sleeps = append(u.sleeps, n.Pos())
			}
		case *ast.SelectorExpr:
			if isPkg(n, "time", "Sleep") && !bubble {
				u.sleeps = append(u.sleeps, n.Pos())
			}
		case *ast.Ident:
			o := s.info.Uses[n]
			if f, ok := o.(*types.Func); ok {
				o = f.Origin()
			}
			if o == nil {
				break // of another package
			}
			if bubble {
				u.bubbled[o] = true
			} else {
				u.wants[o] = true
			}
		}
		return true
	})
}

// opensBubble reports whether what is given to a call runs in a bubble.
func (s *scan) opensBubble(c *ast.CallExpr) bool {
	if id, ok := c.Fun.(*ast.Ident); ok {
		return s.wrappers[s.info.Uses[id]]
	}
	return isPkg(c.Fun, "synctest", "Test")
}

// findWrappers finds the functions that use the functions given to them in a
// bubble alone, be it that of another wrapper.
func (s *scan) findWrappers(files []*ast.File) {
	for found := -1; found < len(s.wrappers); {
		found = len(s.wrappers)
		for _, f := range files {
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && s.wraps(fn) {
					s.wrappers[s.info.Defs[fn.Name]] = true
				}
			}
		}
	}
}

func (s *scan) wraps(fn *ast.FuncDecl) bool {
	if fn.Recv != nil || fn.Body == nil {
		return false
	}
	u, given := s.function(fn), 0
	for _, p := range fn.Type.Params.List {
		if _, ok := p.Type.(*ast.FuncType); !ok {
			continue
		}
		for _, n := range p.Names {
			o := s.info.Defs[n]
			if u.wants[o] || !u.bubbled[o] {
				return false
			}
			given++
		}
	}
	return given > 0
}

// patient reports whether a select waits for something beside time and the end
// of the test: then time is its bound.
func patient(s *ast.SelectStmt) bool {
	for _, c := range s.Body.List {
		comm := c.(*ast.CommClause).Comm
		if comm == nil || timerOf(comm) == nil && !isDone(received(comm)) {
			return true
		}
	}
	return false
}

// received is the channel expression of a receive, nil if a statement is none.
func received(s ast.Stmt) *ast.UnaryExpr {
	var e ast.Expr
	switch s := s.(type) {
	case *ast.ExprStmt:
		e = s.X
	case *ast.AssignStmt:
		e = s.Rhs[0]
	}
	if u, ok := e.(*ast.UnaryExpr); ok && u.Op == token.ARROW {
		return u
	}
	return nil
}

// timerOf is the receive from a timer that a statement is, or nil.
func timerOf(s ast.Stmt) ast.Node {
	if u := received(s); u != nil && isTimer(u) {
		return u
	}
	return nil
}

// isTimer reports whether an expression receives from time.After, time.Tick or
// the channel of a new timer.
func isTimer(u *ast.UnaryExpr) bool {
	if u.Op != token.ARROW {
		return false
	}
	e := u.X
	if s, ok := e.(*ast.SelectorExpr); ok && s.Sel.Name == "C" {
		e = s.X
	}
	c, ok := e.(*ast.CallExpr)
	return ok && (isPkg(c.Fun, "time", "After") || isPkg(c.Fun, "time", "Tick") || isPkg(c.Fun, "time", "NewTimer"))
}

// isDone reports whether a receive waits for the end of a context.
func isDone(u *ast.UnaryExpr) bool {
	if u == nil {
		return false
	}
	c, ok := u.X.(*ast.CallExpr)
	if !ok {
		return false
	}
	s, ok := c.Fun.(*ast.SelectorExpr)
	return ok && s.Sel.Name == "Done"
}

func isPkg(e ast.Expr, pkg, name string) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok || s.Sel.Name != name {
		return false
	}
	id, ok := s.X.(*ast.Ident)
	return ok && id.Name == pkg
}

func typeIdent(e ast.Expr) *ast.Ident {
	switch e := e.(type) {
	case *ast.StarExpr:
		return typeIdent(e.X)
	case *ast.IndexExpr:
		return typeIdent(e.X)
	case *ast.Ident:
		return e
	}
	return nil
}

// The rule itself is tested, so that a slip in it cannot pass all.
func TestSleepsAreFound(t *testing.T) {
	for name, c := range map[string]struct {
		code string
		want []string
	}{
		"plain":                 {`func TestA(t T) { time.Sleep(1) }`, []string{"TestA"}},
		"in a bubble":           {`func TestA(t T) { synctest.Test(t, func(t T) { time.Sleep(1); <-time.After(1) }) }`, nil},
		"beside a bubble":       {`func TestA(t T) { synctest.Test(t, func(t T) {}); time.Sleep(1) }`, []string{"TestA"}},
		"another test's bubble": {`func TestA(t T) { synctest.Test(t, func(t T) {}) }; func TestB(t T) { time.Sleep(1) }`, []string{"TestB"}},
		"helper of bubbles":     {`func TestA(t T) { synctest.Test(t, func(t T) { pass() }) }; func pass() { time.Sleep(1) }`, nil},
		"helper of both":        {`func TestA(t T) { synctest.Test(t, func(t T) { pass() }) }; func TestB(t T) { pass() }; func pass() { time.Sleep(1) }`, []string{"pass"}},
		"helper of a helper":    {`func TestA(t T) { run() }; func run() { pass() }; func pass() { time.Sleep(1) }`, []string{"pass"}},
		"method of bubbles":     {`func TestA(t T) { synctest.Test(t, func(t T) { var w world; w.pass() }) }; func (w *world) pass() { time.Sleep(1) }`, nil},
		"method of both":        {`func TestA(t T) { var w world; w.pass() }; func (w *world) pass() { time.Sleep(1) }`, []string{"pass"}},
		"methods of one name":   {`type other struct{}; func TestA(t T) { other{}.pass() }; func (other) pass() {}; func TestB(t T) { synctest.Test(t, func(t T) { world{}.pass() }) }; func (w world) pass() { time.Sleep(1) }`, nil},
		"by an interface":       {`func TestA(t T) { use(world{}) }; func (w world) Read() { time.Sleep(1) }`, []string{"Read"}},
		"nobody's":              {`func pass() { time.Sleep(1) }`, []string{"pass"}},
		"as a value":            {`func TestA(t T) { f := time.Sleep; f(1) }`, []string{"TestA"}},
		"outside of all":        {`var f = func() { time.Sleep(1) }`, []string{""}},
		"wrapper":               {`func bubble(f func()) { synctest.Test(t, func(t T) { f() }) }; func TestA(t T) { bubble(func() { time.Sleep(1) }) }`, nil},
		"wrapper of a wrapper":  {`func outer(f func()) { inner(func() { f() }) }; func inner(f func()) { synctest.Test(t, func(t T) { f() }) }; func TestA(t T) { outer(func() { time.Sleep(1) }) }`, nil},
		"no wrapper":            {`func both(f func()) { f(); synctest.Test(t, func(t T) { f() }) }; func TestA(t T) { both(func() { time.Sleep(1) }) }`, []string{"TestA"}},
		"after":                 {`func TestA(t T) { <-time.After(1) }`, []string{"TestA"}},
		"a timer":               {`func TestA(t T) { <-time.NewTimer(1).C }`, []string{"TestA"}},
		"a bound":               {`func TestA(t T) { select { case <-done: case <-time.After(1): } }`, nil},
		"a select of nothing":   {`func TestA(t T) { select { case <-time.After(1): } }`, []string{"TestA"}},
		"a cancelled sleep":     {`func TestA(t T) { select { case <-ctx.Done(): case <-time.After(1): } }`, []string{"TestA"}},
	} {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, "a_test.go", "package p\nimport (\"time\"; \"testing/synctest\")\ntype world struct{}\n"+c.code, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(name, err)
		}
		var got []string
		for _, s := range sleeps(fset, []*ast.File{f}) {
			got = append(got, s.in)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: found %q, want %q", name, got, c.want)
		}
	}
}
