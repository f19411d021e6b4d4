package node

import "sync/atomic"

// fault is what went wrong at the last try of something that is tried again and
// again. Reading and setting are safe for concurrent use.
type fault struct{ text atomic.Pointer[string] }

// set takes the outcome of a try, and reports whether it is a fault that did not
// stand before: then it is worth a line in the log.
func (f *fault) set(err error) (news bool) {
	if err == nil {
		f.text.Store(nil)
		return false
	}
	text := err.Error()
	old := f.text.Swap(&text)
	return old == nil || *old != text
}

// get gives the fault that stands; empty: none.
func (f *fault) get() string {
	if text := f.text.Load(); text != nil {
		return *text
	}
	return ""
}
