package gateway

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// DropAddresses takes away every gateway on the inside interface and every VIP on lo
// that a Keeper put there, this one or one before: a host that forwards no more must
// not answer for them, or servers go on sending their replies to where nobody rewrites
// them. No Keeper may run. An interface that is gone has taken its addresses along.
func DropAddresses(inside string) error {
	k, err := OpenAddresses(inside)
	if err != nil {
		return err
	}
	defer k.Close()
	drop := func(name string, vip bool) (faults []error) {
		ours, _, err := k.list(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		faults = append(faults, err)
		for _, a := range ours {
			faults = append(faults, k.Remove(a, vip))
		}
		return faults
	}
	return errors.Join(append(drop(inside, false), drop("lo", true)...)...)
}
