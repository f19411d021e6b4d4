package admin

import (
	"context"
	"errors"
	"sync"
)

// maxSteps bounds what is kept of a long operation for those who come later.
const maxSteps = 256

// operation is a long request under way. Whoever asks for it again while it
// runs follows it: a person who pressed Ctrl-C finds it where it is.
type operation struct {
	in    any // the request that began it
	mu    sync.Mutex
	steps []string
	more  chan struct{} // closed, and made anew, with each step; closed for good at the end
	ended bool
	err   error
}

func newOperation(in any) *operation { return &operation{in: in, more: make(chan struct{})} }

func (o *operation) step(s string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.steps) < maxSteps {
		o.steps = append(o.steps, s)
	}
	close(o.more)
	o.more = make(chan struct{})
}

func (o *operation) end(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended, o.err = true, err
	close(o.more)
}

// since gives the steps from the nth on, and what is closed when there is more.
func (o *operation) since(n int) (steps []string, ended bool, more <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.steps[n:], o.ended, o.more
}

// follow tells the steps so far and those to come, until the operation ends,
// whose error it returns, or ctx does.
func (o *operation) follow(ctx context.Context, step func(string)) error {
	for n := 0; ; {
		steps, ended, more := o.since(n)
		for _, s := range steps {
			step(s)
		}
		n += len(steps)
		if ended {
			return o.err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// operations are those under way, by path.
type operations struct {
	mu      sync.Mutex
	running map[string]*operation
}

// begin gives the operation of a path, and whether it is a new one, which the
// caller must run.
func (s *operations) begin(path string, in any) (o *operation, fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, ok := s.running[path]; ok {
		return o, false
	}
	if s.running == nil {
		s.running = make(map[string]*operation)
	}
	o = newOperation(in)
	s.running[path] = o
	return o, true
}

// run runs what begin began.
func (s *operations) run(path string, fn func() error) (err error) {
	err = errPanic
	defer func() {
		s.mu.Lock()
		o := s.running[path]
		delete(s.running, path)
		s.mu.Unlock()
		o.end(err)
	}()
	return fn()
}

// errPanic is what followers get of an operation that did not return.
var errPanic = errors.New("the operation broke off: the node's log says why")
