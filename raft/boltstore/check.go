package boltstore

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"io"
	"os"
)

// The layout of a bbolt file, version 2, as far as its structure goes. Numbers
// are in the byte order of the machine; amd64 and arm64 are little endian.
//
//	page:   id u64 | flags u16 | count u16 | overflow u32 | elements…
//	meta:   magic u32 | version u32 | page size u32 | flags u32 | root u64 |
//	        sequence u64 | freelist u64 | high water u64 | txid u64 | FNV-1a-64 of all before
//	branch: count × (pos u32 | key size u32 | page u64), keys at pos from the element
//	leaf:   count × (flags u32 | pos u32 | key size u32 | value size u32)
//	bucket: value of a leaf with flag 1: root u64 | sequence u64 | inline page if root = 0
const (
	pageHeader  = 16
	elementSize = 16
	metaSize    = 64
	metaMagic   = 0xED0CDAED
	metaVersion = 2
	flagBranch  = 0x01
	flagLeaf    = 0x02
	leafBucket  = 0x01
	maxDepth    = 64      // a tree of 2^64 pages is less deep
	maxPageSize = 1 << 16 // of any machine
)

// checker walks all pages that can be reached, each once, without mapping the
// file and without trusting any number in it.
type checker struct {
	f        io.ReaderAt
	pageSize int64
	pages    uint64 // in the file
	seen     map[uint64]struct{}
}

// checkFile verifies that bbolt can walk the file without a panic.
func checkFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	m, err := readMeta(f, fi.Size())
	if err != nil {
		return err
	}
	c := &checker{f: f, pageSize: m.pageSize, pages: uint64(fi.Size() / m.pageSize), seen: map[uint64]struct{}{0: {}, 1: {}}}
	if m.highWater > c.pages {
		return corruptf("file of %d pages should have %d", c.pages, m.highWater)
	}
	c.pages = m.highWater
	return c.page(m.root, 0)
}

type meta struct {
	pageSize        int64
	root, highWater uint64
	txid            uint64
}

// readMeta chooses the newer of the two valid meta pages, as bbolt does. The
// second one lies one page in: try the sizes a page can have.
func readMeta(f io.ReaderAt, size int64) (meta, error) {
	var best meta
	found := false
	take := func(off int64) {
		if m, ok := parseMeta(f, off); ok && (off == 0 || m.pageSize == off) && (!found || m.txid > best.txid) {
			best, found = m, true
		}
	}
	take(0)
	for ps := int64(1024); ps <= maxPageSize && ps < size; ps *= 2 {
		take(ps)
	}
	if !found {
		return meta{}, corruptf("no valid meta page in %d bytes", size)
	}
	return best, nil
}

func parseMeta(f io.ReaderAt, off int64) (meta, bool) {
	var b [pageHeader + metaSize]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return meta{}, false
	}
	p := b[pageHeader:]
	le := binary.LittleEndian
	h := fnv.New64a()
	h.Write(p[:56])
	m := meta{pageSize: int64(le.Uint32(p[8:])), root: le.Uint64(p[16:]), highWater: le.Uint64(p[40:]), txid: le.Uint64(p[48:])}
	ok := le.Uint32(p) == metaMagic && le.Uint32(p[4:]) == metaVersion && le.Uint64(p[56:]) == h.Sum64() &&
		m.pageSize >= 1024 && m.pageSize <= maxPageSize && m.pageSize&(m.pageSize-1) == 0
	return m, ok
}

// page checks page id with its overflow pages, and all below it.
func (c *checker) page(id uint64, depth int) error {
	if depth > maxDepth {
		return corruptf("page %d lies deeper than %d", id, maxDepth)
	}
	if id < 2 || id >= c.pages {
		return corruptf("page %d of %d", id, c.pages)
	}
	var h [pageHeader]byte
	if _, err := c.f.ReadAt(h[:], int64(id)*c.pageSize); err != nil {
		return corruptf("read page %d: %v", id, err)
	}
	le := binary.LittleEndian
	over := uint64(le.Uint32(h[12:]))
	if got := le.Uint64(h[:]); got != id {
		return corruptf("page %d says it is page %d", id, got)
	}
	if over >= c.pages-id {
		return corruptf("page %d runs over by %d of %d pages", id, over, c.pages)
	}
	for i := id; i <= id+over; i++ {
		if _, twice := c.seen[i]; twice {
			return corruptf("page %d is in use twice", i)
		}
		c.seen[i] = struct{}{}
	}
	b := make([]byte, int64(over+1)*c.pageSize)
	if _, err := c.f.ReadAt(b, int64(id)*c.pageSize); err != nil {
		return corruptf("read page %d: %v", id, err)
	}
	return c.elements(id, b, depth)
}

// elements checks what is in the page, or in the inline bucket, b.
func (c *checker) elements(id uint64, b []byte, depth int) error {
	le := binary.LittleEndian
	flags, count := le.Uint16(b[8:]), int(le.Uint16(b[10:]))
	if flags != flagBranch && flags != flagLeaf {
		return corruptf("page %d has flags %#x", id, flags)
	}
	if flags == flagBranch && count == 0 {
		return corruptf("branch page %d is empty", id)
	}
	if pageHeader+count*elementSize > len(b) {
		return corruptf("page %d has %d elements", id, count)
	}
	var last []byte
	for i := range count {
		off := pageHeader + i*elementSize
		e := b[off : off+elementSize]
		pos, ksize, vsize := uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		if flags == flagBranch {
			pos, ksize, vsize = uint64(le.Uint32(e)), uint64(le.Uint32(e[4:])), 0
		}
		if pos < elementSize || uint64(off)+pos+ksize+vsize > uint64(len(b)) {
			return corruptf("element %d of page %d points out of it", i, id)
		}
		at := uint64(off) + pos
		key := b[at : at+ksize]
		if i > 0 && bytes.Compare(last, key) >= 0 {
			return corruptf("keys of page %d are not in order", id)
		}
		last = key
		switch {
		case flags == flagBranch:
			if err := c.page(le.Uint64(e[8:]), depth+1); err != nil {
				return err
			}
		case le.Uint32(e)&leafBucket != 0:
			if err := c.bucket(id, b[at+ksize:at+ksize+vsize], depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *checker) bucket(id uint64, v []byte, depth int) error {
	if len(v) < 16 {
		return corruptf("bucket in page %d has %d bytes", id, len(v))
	}
	if root := binary.LittleEndian.Uint64(v); root != 0 {
		return c.page(root, depth)
	}
	if len(v) < 16+pageHeader || depth > maxDepth {
		return corruptf("inline bucket in page %d has %d bytes", id, len(v))
	}
	return c.elements(id, v[16:], depth)
}
