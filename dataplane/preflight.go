package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Preflight says why Attach would fail on this host, every reason in an error of
// its own, and changes nothing. Whose pins are there is PinnedBy's business.
func Preflight(cfg Config) []error {
	var faults []error
	list, err := netlink.LinkList()
	if err != nil {
		faults = append(faults, fmt.Errorf("list interfaces: %w", err))
	}
	for _, c := range cfg.Interfaces {
		dev, err := devices(list).find(c.Name)
		if err == nil {
			_, err = devices(list).physical(dev)
		}
		if err != nil {
			faults = append(faults, err)
		}
	}
	if err := onBPFFS(cfg.PinDir); err != nil {
		faults = append(faults, err)
	} else if err := probe(); err != nil {
		faults = append(faults, err)
	}
	return faults
}

// onBPFFS checks the folder, or the nearest one above it that exists: that one
// says on which file system the folder will be.
func onBPFFS(dir string) error {
	at := dir
	for {
		_, err := os.Stat(at)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || at == filepath.Dir(at) {
			return fmt.Errorf("inspect pin directory: %w", err)
		}
		at = filepath.Dir(at)
	}
	return checkBPFFS(at, dir)
}

func checkBPFFS(at, dir string) error {
	var fsinfo unix.Statfs_t
	if err := unix.Statfs(at, &fsinfo); err != nil {
		return fmt.Errorf("inspect pin directory %s: %w", at, err)
	}
	if uint32(fsinfo.Type) != bpffsMagic {
		return fmt.Errorf("pin directory %s is not on a bpffs: mount -t bpf bpf <folder above it>", dir)
	}
	return nil
}

// PinnedBy gives the ID of the cluster whose maps are pinned under cfg.PinDir;
// zero where none are, or nothing was agreed in them.
func PinnedBy(cfg Config) ([16]byte, error) {
	pins, err := pinsIn(cfg.PinDir)
	if err != nil {
		return [16]byte{}, err
	}
	p := &Plane{cfg: cfg}
	for name := range pins {
		if !strings.HasPrefix(name, "plane_meta_") {
			continue
		}
		b, err := p.metaBytes(name)
		if err != nil {
			return [16]byte{}, err
		}
		if id := [16]byte(b[commonMeta-16 : commonMeta]); id != [16]byte{} {
			return id, nil
		}
	}
	return [16]byte{}, nil
}
