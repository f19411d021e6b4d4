package main

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

func TestFacts(t *testing.T) {
	const dump = "meta schema=2 index=7\nvip 0 203.0.113.10 passthrough=false\nnot_return 198.51.100.0/24\n"
	want := []fact{
		{"meta", []string{}, map[string]string{"schema": "2", "index": "7"}},
		{"vip", []string{"0", "203.0.113.10"}, map[string]string{"passthrough": "false"}},
		{"not_return", []string{"198.51.100.0/24"}, map[string]string{}},
	}
	for size := 1; size <= len(dump); size++ { // however the writes are cut
		var out bytes.Buffer
		w := factWriter{w: &out}
		for rest := dump; rest != ""; {
			n := min(size, len(rest))
			if _, err := w.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		w.end()
		var got []fact
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("in pieces of %d: %+v, %v\n%s", size, got, err, out.String())
		}
	}
	var none bytes.Buffer
	w := factWriter{w: &none}
	if w.end(); none.String() != "[]\n" {
		t.Errorf("nothing is %q", none.String())
	}
}
