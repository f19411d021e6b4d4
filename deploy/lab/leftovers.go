package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// leftovers lists what is still there of a node that has left the cluster and whose
// daemon has ended: pins, programs on its interfaces, addresses that float, packet
// filters. None of it may be.
func (l *Lab) leftovers(node string) (out []string, err error) {
	pins := l.path(bpfDir, node)
	err = filepath.WalkDir(pins, func(path string, e fs.DirEntry, err error) error {
		if err == nil && path != pins {
			out = append(out, "pin "+e.Name())
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // the whole folder is gone
		return nil, fmt.Errorf("look for pins: %w", err)
	}
	floating := l.st.Options.vips()
	for _, f := range l.st.Options.families() {
		for i := range l.st.Options.Nodes {
			floating = append(floating, f.gateway(i+1))
		}
	}
	err = l.inside(node, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list links: %w", err)
		}
		for _, link := range links {
			if x := link.Attrs().Xdp; x != nil && x.Attached {
				out = append(out, "XDP program on "+link.Attrs().Name)
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
			if err != nil {
				return fmt.Errorf("list addresses: %w", err)
			}
			for _, a := range addrs {
				if ip, ok := netip.AddrFromSlice(a.IP); ok && slices.Contains(floating, ip.Unmap()) {
					out = append(out, fmt.Sprintf("address %s on %s", ip.Unmap(), link.Attrs().Name))
				}
			}
		}
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		tables, err := c.ListTables()
		if err != nil {
			return fmt.Errorf("list packet filters: %w", err)
		}
		for _, t := range tables {
			out = append(out, "packet filter "+t.Name)
		}
		return nil
	})
	return out, err
}
