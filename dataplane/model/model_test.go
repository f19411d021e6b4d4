package model_test

import (
	"bytes"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
)

func TestFixtures(t *testing.T) {
	all, err := fixture.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		t.Run(f.Name, func(t *testing.T) {
			tables, err := f.Tables()
			if err != nil {
				t.Fatal(err)
			}
			before := bytes.Clone(f.Frame)
			got := model.Decide(f.Frame, f.Interface, tables)
			if !bytes.Equal(before, f.Frame) {
				t.Error("the frame was changed")
			}
			if diff := fixture.Diff(got, f.Want); diff != "" {
				t.Errorf("%s\n%s", f.Description, diff)
			}
		})
	}
}
