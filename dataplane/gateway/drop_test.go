package gateway

import (
	"net/netip"
	"slices"
	"testing"
)

// Whoever detaches takes off what a Keeper left, of both families, and nothing else;
// an interface that is gone keeps no VIP on lo.
func TestDropAddresses(t *testing.T) {
	ns, _ := lan(t)
	k := in(t, ns, func() (*KernelAddresses, error) { return OpenAddresses("eth1") })
	defer k.Close()

	ours := func() []netip.Addr {
		gateways, vips, err := k.Ours()
		if err != nil {
			t.Fatal(err)
		}
		return slices.Concat(gateways, vips)
	}
	for _, inside := range []string{"eth1", "gone0"} {
		held := []netip.Addr{gw, gw6, vip, vip6}
		for _, a := range held {
			if err := k.Add(a, a == vip || a == vip6); err != nil {
				t.Fatal(err)
			}
		}
		if got := ours(); len(got) != len(held) {
			t.Fatalf("held: %v", got)
		}
		for range 2 { // what is gone is no error
			in(t, ns, func() (any, error) { return nil, DropAddresses(inside) })
		}
		left := ours()
		if inside == "gone0" {
			left = slices.DeleteFunc(left, func(a netip.Addr) bool { return a == gw || a == gw6 })
		}
		if len(left) != 0 {
			t.Errorf("inside %s: left %v", inside, left)
		}
	}
	subnets, err := k.Inside()
	if err != nil || len(subnets) != 2 {
		t.Errorf("the interface's own: %v, %v", subnets, err)
	}
}
