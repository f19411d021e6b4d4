package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
)

func (c *Config) schemaSuffix() string {
	if c.schema != 0 {
		return fmt.Sprintf("_v%d", c.schema)
	}
	return fmt.Sprintf("_v%d", schema)
}

// bpffsMagic is the type of a bpffs, from the kernel's magic.h.
const bpffsMagic = 0xcafe4a11

// unpinned maps are caches of one program; a new program starts with new ones.
var unpinned = map[string]bool{"next_hop_by_vip": true, "next_hop_by_client": true, "scratches": true, "answers": true,
	"trace_filters": true, "trace_ring": true, "bench_plans": true}

// keepsSize are the maps whose pinned size wins over the configuration's.
var keepsSize = map[string]bool{"affinity4": true, "affinity6": true, "affinity_stash": true}

// pinName matches what this package pins, of any schema version: of a later one the
// maps have other names.
var pinName = regexp.MustCompile(`^(link_.+|offloads_.+|[a-z][a-z0-9_]*_v[0-9]+)$`)

func pinOfMap(name string) bool {
	return !strings.HasPrefix(name, "link_") && !strings.HasPrefix(name, offloadPrefix)
}

func (p *Plane) mapPin(name string) string {
	return filepath.Join(p.cfg.PinDir, name+p.cfg.schemaSuffix())
}

func (p *Plane) linkPin(name string) string {
	return filepath.Join(p.cfg.PinDir, "link_"+name)
}

// preparePinDir makes the folder and checks that it can hold pins.
func preparePinDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	return checkBPFFS(dir, dir)
}

// readMeta reads the pinned meta map before anything else is touched. Where only maps
// of another schema are there, their index counts: what is older must not take over.
func (p *Plane) readMeta(pins map[string]bool) (meta bpf.PlaneMeta, found bool, err error) {
	m, err := ebpf.LoadPinnedMap(p.mapPin("plane_meta"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return p.readOtherMeta(pins)
	}
	if err != nil {
		return meta, false, fmt.Errorf("open pinned meta map: %w", err)
	}
	defer m.Close()
	if err := m.Lookup(uint32(0), &meta); err != nil {
		return meta, false, fmt.Errorf("read pinned meta map: %w", err)
	}
	return meta, meta.ClusterId != [16]byte{}, nil
}

// readOtherMeta gives the highest index and generation of other schemas' maps.
func (p *Plane) readOtherMeta(pins map[string]bool) (meta bpf.PlaneMeta, found bool, err error) {
	for name := range pins {
		if !strings.HasPrefix(name, "plane_meta_") {
			continue
		}
		b, err := p.metaBytes(name)
		if err != nil {
			return meta, false, err
		}
		if index := binary.NativeEndian.Uint64(b[8:]); index >= meta.Index {
			meta.Index, meta.Generation = index, binary.NativeEndian.Uint64(b[16:])
		}
	}
	return meta, false, nil
}

// metaBytes reads a pinned meta map of any schema: all begin with the same 40 bytes.
func (p *Plane) metaBytes(name string) ([]byte, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.cfg.PinDir, name), nil)
	if err != nil {
		return nil, fmt.Errorf("open pinned %s: %w", name, err)
	}
	defer m.Close()
	b, err := m.LookupBytes(uint32(0))
	if err != nil {
		return nil, fmt.Errorf("read pinned %s: %w", name, err)
	}
	if len(b) < commonMeta {
		return nil, fmt.Errorf("pinned %s in %s: %w", name, p.cfg.PinDir, ErrForeign)
	}
	return b, nil
}

// commonMeta is what the meta maps of all schemas begin with: schema, index,
// generation, cluster ID.
const commonMeta = 40

// checkOwner refuses the pins of another cluster, of whatever schema: a struct
// meta begins with the same 40 bytes in all of them, the ID last.
func (p *Plane) checkOwner(pins map[string]bool, clusterID [16]byte) error {
	for name := range pins {
		if !strings.HasPrefix(name, "plane_meta_") {
			continue
		}
		b, err := p.metaBytes(name)
		if err != nil {
			return err
		}
		if id := [16]byte(b[commonMeta-16 : commonMeta]); id != [16]byte{} && id != clusterID {
			return fmt.Errorf("pins in %s, cluster %x: %w", p.cfg.PinDir, id, ErrForeign)
		}
	}
	return nil
}

// pinnedMaps opens the maps that are pinned already. The affinity tables keep
// their size; any other difference is an error, never a silent new map.
func (p *Plane) pinnedMaps(spec *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	maps := make(map[string]*ebpf.Map)
	for name, s := range spec.Maps {
		if unpinned[name] || s.Name[0] == '.' {
			continue
		}
		m, err := ebpf.LoadPinnedMap(p.mapPin(name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			closeMaps(maps)
			return nil, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		if keepsSize[name] && s.MaxEntries != m.MaxEntries() {
			p.log.Warn("pinned affinity table keeps its size", "map", name, "pinned", m.MaxEntries(), "configured", s.MaxEntries)
			s.MaxEntries = m.MaxEntries()
		}
		maps[name] = m
		if err := s.Compatible(m); err != nil {
			closeMaps(maps)
			return nil, fmt.Errorf("pinned map %s does not fit this binary, run `vpnlb plane detach`: %w", name, err)
		}
	}
	return maps, nil
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}

// pinMaps pins what is not pinned yet.
func (p *Plane) pinMaps(coll *ebpf.Collection, have map[string]*ebpf.Map) error {
	for name, m := range coll.Maps {
		if unpinned[name] || name[0] == '.' || have[name] != nil {
			continue
		}
		if err := m.Pin(p.mapPin(name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return nil
}

// controlWords is this process's own mapping of the control map, so that each
// word is stored at once (a map update copies bytes).
type controlWords struct {
	page []byte
}

func mapControl(m *ebpf.Map) (*controlWords, error) {
	page, err := unix.Mmap(m.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map control words: %w", err)
	}
	return &controlWords{page: page}, nil
}

func (c *controlWords) words() *bpf.PlaneControl {
	return (*bpf.PlaneControl)(unsafe.Pointer(&c.page[0]))
}

func (c *controlWords) selector() uint32      { return atomic.LoadUint32(&c.words().Selector) & 1 }
func (c *controlWords) selectTables(s uint32) { atomic.StoreUint32(&c.words().Selector, s) }
func (c *controlWords) pendingSerial() uint32 { return atomic.LoadUint32(&c.words().PendingSerial) }
func (c *controlWords) live(jiffies uint32)   { atomic.StoreUint32(&c.words().Alive, jiffies) }
func (c *controlWords) trace(on uint32)       { atomic.StoreUint32(&c.words().Tracing, on) }
func (c *controlWords) forgetNextHops()       { atomic.AddUint32(&c.words().NextHopSerial, 1) }

func (c *controlWords) Close() error { return unix.Munmap(c.page) }

// Detach removes the program from all interfaces and all pinned maps under
// cfg.PinDir, of any cluster and schema version, and switches on again what
// Attach had switched off at the devices. Forwarding ends. Files that this
// package did not pin stay.
func Detach(cfg Config) error { return unpin(cfg.PinDir, nil) }

// pinsIn lists what this package pinned in a folder.
func pinsIn(dir string) (map[string]bool, error) {
	names, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read pin directory: %w", err)
	}
	pins := make(map[string]bool)
	for _, n := range names {
		if pinName.MatchString(n.Name()) {
			pins[n.Name()] = true
		}
	}
	return pins, nil
}

// unpin removes what this package pinned, but what is to be kept.
func unpin(dir string, keep map[string]bool) error {
	pins, err := pinsIn(dir)
	if err != nil {
		return err
	}
	var faults []error
	// Links first: a program must not run on maps that are half gone.
	for _, links := range []bool{true, false} {
		for name := range pins {
			switch {
			case keep[name] || strings.HasPrefix(name, "link_") != links:
			case strings.HasPrefix(name, offloadPrefix):
				faults = append(faults, restoreOffloads(filepath.Join(dir, name)))
			default:
				faults = append(faults, os.Remove(filepath.Join(dir, name)))
			}
		}
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	// The folder itself goes if nothing else is in it.
	if left, err := os.ReadDir(dir); err == nil && len(left) == 0 {
		os.Remove(dir)
	}
	return nil
}
