package main

import (
	"os"
	"testing"
)

func TestHeaderIsCurrent(t *testing.T) {
	have, err := os.ReadFile("../reasons.h")
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != header() {
		t.Error("reasons.h differs from table.Reason: go generate ./dataplane/bpf")
	}
}
