package model_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

func TestExplain(t *testing.T) {
	vip, client := netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("203.0.113.7")
	for _, c := range []struct {
		name, set           string
		record              table.Slot
		unknown, open, rest table.Reason
		slots               [3]table.Slot
		words               string // in Opening's
	}{
		{"unknown", "single", 0, table.ForwardMaglev, table.ForwardMaglev, table.ForwardMaglev, [3]table.Slot{1, 1, 1}, "no record; place"},
		{"take", "farm", 2, table.ForwardMaglev, table.ForwardAffinity, table.ForwardAffinity, [3]table.Slot{1, 2, 2}, "takes new clients"},
		{"keep", "farm", 3, table.ForwardMaglev, table.ForwardAffinity, table.ForwardAffinity, [3]table.Slot{1, 3, 3}, "keeps its clients"},
		{"leave", "farm", 4, table.ForwardMaglev, table.ForwardReopened, table.ForwardAffinity, [3]table.Slot{1, 1, 4}, "new logins go elsewhere; place"},
		{"void", "farm", 5, table.ForwardMaglev, table.ForwardMaglev, table.ForwardMaglev, [3]table.Slot{1, 1, 1}, "are void; place"},
		{"other vip", "farm", 6, table.ForwardMaglev, table.ForwardMaglev, table.ForwardMaglev, [3]table.Slot{1, 1, 1}, "another vip"},
		{"gone", "farm", 99, table.ForwardMaglev, table.ForwardMaglev, table.ForwardMaglev, [3]table.Slot{1, 1, 1}, "no server is"},
		{"leave, nobody takes", "empty", 4, table.DropNoBackend, table.DropNoBackend, table.ForwardAffinity, [3]table.Slot{0, 0, 4}, "dropped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			set, err := fixture.Set(c.set)
			if err != nil {
				t.Fatal(err)
			}
			tables, err := model.FromSet(set, model.Env{Entry: func(k table.Key) (table.Entry, bool) {
				return table.Entry{Key: k, Slot: c.record, State: table.Confirmed}, c.record != 0
			}})
			if err != nil {
				t.Fatal(err)
			}
			x, err := model.Explain(tables, vip, client, table.IKE)
			if err != nil {
				t.Fatal(err)
			}
			got := [3]table.Reason{x.Unknown.Reason, x.Opening.Reason, x.Else.Reason}
			if want := [3]table.Reason{c.unknown, c.open, c.rest}; got != want {
				t.Errorf("reasons %v, want %v", got, want)
			}
			if slots := [3]table.Slot{x.Unknown.Slot, x.Opening.Slot, x.Else.Slot}; slots != c.slots {
				t.Errorf("slots %v, want %v", slots, c.slots)
			}
			if !strings.Contains(x.Opening.Words, c.words) {
				t.Errorf("words %q lack %q", x.Opening.Words, c.words)
			}
		})
	}
}

func TestExplainRefuses(t *testing.T) {
	set, _ := fixture.Set("farm")
	tables, err := model.FromSet(set, model.Env{})
	if err != nil {
		t.Fatal(err)
	}
	vip, client := netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("203.0.113.7")
	for _, err := range []error{
		second(model.Explain(tables, client, client, table.IKE)),
		second(model.Explain(tables, vip, client, 0)),
		second(model.Explain(tables, vip, netip.MustParseAddr("2001:db8::1"), table.IKE)),
	} {
		if err == nil {
			t.Error("Explain took nonsense")
		}
	}
}

func second(_ model.Explanation, err error) error { return err }

func TestFromSetReportsEveryFault(t *testing.T) {
	set, _ := fixture.Set("farm")
	set.TableSize = 250
	set.Backends[1].Slot = set.Backends[0].Slot
	set.Backends[2].VIP = 9
	set.Backends[3].Addr = set.Backends[0].Addr
	set.VIPs[1].Index = 0
	set.VIPs = append(set.VIPs, table.VIP{Index: 7, Addr: netip.MustParseAddr("2001:db8::1")})
	_, err := model.FromSet(set, model.Env{})
	if err == nil {
		t.Fatal("a bad set was taken")
	}
	for _, words := range []string{"250", "slot 1", "vip 9", "address is taken", "named twice", "client bits 0"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("%v: lacks %q", err, words)
		}
	}
}

func TestFragmentsForgetTheOldest(t *testing.T) {
	f := model.NewFragments(2)
	key := func(id uint32) model.FragmentKey { return model.FragmentKey{ID: id, Protocol: 17} }
	for id := range uint32(3) {
		f.Note(&model.FragmentNote{Key: key(id), Fate: model.FateReturn})
		f.Note(&model.FragmentNote{Key: key(id), Fate: model.FateOther})
	}
	f.Note(nil)
	for id, want := range []model.Fate{model.FateUnknown, model.FateOther, model.FateOther} {
		if got := f.Fate(key(uint32(id))); got != want {
			t.Errorf("id %d: %v, want %v", id, got, want)
		}
	}
}
