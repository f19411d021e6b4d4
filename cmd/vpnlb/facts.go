package main

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
)

// fact is a line of a dump, for programs: "vip 0 203.0.113.10 passthrough=false".
type fact struct {
	Fact   string            `json:"fact"`   // the first word: what it is about
	Words  []string          `json:"words"`  // those without a key, in order
	Values map[string]string `json:"values"` // the others
}

func factOf(line string) fact {
	words := strings.Fields(line)
	f := fact{Words: []string{}, Values: map[string]string{}}
	for i, w := range words {
		key, value, pair := strings.Cut(w, "=")
		switch {
		case i == 0:
			f.Fact = w
		case pair:
			f.Values[key] = value
		default:
			f.Words = append(f.Words, w)
		}
	}
	return f
}

// factWriter turns lines into a list in JSON as they come: there may be hundreds
// of thousands.
type factWriter struct {
	w     io.Writer
	line  []byte // begun
	facts int
}

// Write implements io.Writer.
func (f *factWriter) Write(b []byte) (int, error) {
	for rest := b; ; {
		line, more, ended := bytes.Cut(rest, []byte("\n"))
		f.line = append(f.line, line...)
		if !ended {
			return len(b), nil
		}
		if err := f.put(); err != nil {
			return 0, err
		}
		rest = more
	}
}

func (f *factWriter) put() error {
	before := "[\n  "
	if f.facts > 0 {
		before = ",\n  "
	}
	text, err := json.Marshal(factOf(string(f.line)))
	if err != nil {
		return err
	}
	f.line = f.line[:0]
	f.facts++
	_, err = io.WriteString(f.w, before+string(text))
	return err
}

// end completes the list.
func (f *factWriter) end() error {
	text := "\n]\n"
	if f.facts == 0 {
		text = "[]\n"
	}
	_, err := io.WriteString(f.w, text)
	return err
}
