package boltstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
)

var (
	bucketLog    = []byte("log")    // index (big endian u64) → log record
	bucketStable = []byte("stable") // key → stable record
	bucketMeta   = []byte("meta")   // keyCommit → stable record of a u64
	keyCommit    = []byte("commit")
)

const (
	// lockTimeout is how long Open waits for another process to let go.
	lockTimeout = time.Second
	// deleteChunk entries go in one transaction: it bounds its dirty pages.
	deleteChunk = 8192
	// appendFill of a log page: entries come in order and never in between.
	appendFill = 0.95
)

// Store is one open file. All methods are safe for concurrent use.
type Store struct {
	db    *bolt.DB
	bytes atomic.Int64 // keys and values of the log bucket

	mu          sync.Mutex // guards what follows; never held over the disk
	first, last uint64     // 0, 0: no entries
	staged      uint64     // commit index to write with the next entries
	commit      uint64     // commit index on the disk
}

var (
	_ hraft.CommitTrackingLogStore = (*Store)(nil)
	_ hraft.StableStore            = (*Store)(nil)
	_ hraft.MonotonicLogStore      = (*Store)(nil)
)

// Open opens or creates the file with mode 0600 and checks all of it. A file
// that cannot be trusted gives a *CorruptError; Quarantine moves it away.
func Open(path string) (*Store, error) {
	if fi, err := os.Stat(path); err == nil && fi.Size() > 0 {
		if err := checkFile(path); err != nil {
			return nil, fmt.Errorf("check %s: %w", path, err)
		}
	}
	s := &Store{}
	err := protect(func() (err error) {
		s.db, err = bolt.Open(path, 0o600, &bolt.Options{
			Timeout:        lockTimeout,
			NoFreelistSync: true, // rebuilt by a scan at Open, saves its write in each commit
			FreelistType:   bolt.FreelistMapType,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err := s.load(); err != nil {
		_ = protect(s.db.Close)
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return s, nil
}

// Quarantine renames a file or directory to NAME.corrupt-<time> and returns the
// new path; one that does not exist gives "".
func Quarantine(path string, now time.Time) (string, error) {
	to := path + ".corrupt-" + now.UTC().Format("20060102T150405.000Z")
	if err := os.Rename(path, to); errors.Is(err, os.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("quarantine %s: %w", path, err)
	}
	return to, syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// load makes the buckets and reads every record once: its checksum, the ends of
// the log, its size.
func (s *Store) load() error {
	err := s.update(func(tx *bolt.Tx) error {
		for _, b := range [][]byte{bucketLog, bucketStable, bucketMeta} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.view(func(tx *bolt.Tx) error {
		var size int64
		var l hraft.Log
		err := tx.Bucket(bucketLog).ForEach(func(k, v []byte) error {
			if len(k) != 8 {
				return corruptf("log key of %d bytes", len(k))
			}
			i := binary.BigEndian.Uint64(k)
			if err := decodeLog(i, v, &l); err != nil {
				return err
			}
			if s.first == 0 {
				s.first = i
			}
			s.last = i
			size += int64(len(k) + len(v))
			return nil
		})
		if err != nil {
			return err
		}
		s.bytes.Store(size)
		if err := tx.Bucket(bucketStable).ForEach(func(k, v []byte) error {
			_, err := decodeStable(k, v)
			return err
		}); err != nil {
			return err
		}
		if v := tx.Bucket(bucketMeta).Get(keyCommit); v != nil {
			b, err := decodeStable(keyCommit, v)
			if err != nil {
				return err
			}
			if len(b) != 8 {
				return corruptf("commit index of %d bytes", len(b))
			}
			s.commit = binary.BigEndian.Uint64(b)
		}
		return nil
	})
}

// Close waits for the transaction that is running.
func (s *Store) Close() error { return protect(s.db.Close) }

// IsMonotonic makes raft clear the log after it installed a snapshot, so that
// the log never has a gap above the snapshot.
func (s *Store) IsMonotonic() bool { return true }

// FirstIndex returns the first index, 0 when empty.
func (s *Store) FirstIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first, nil
}

// LastIndex returns the last index, 0 when empty.
func (s *Store) LastIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, nil
}

// LogBytes is the size of all entries.
func (s *Store) LogBytes() int64 { return s.bytes.Load() }

// GetLog reads one entry.
func (s *Store) GetLog(index uint64, l *hraft.Log) error {
	return s.view(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketLog).Get(indexKey(index))
		if v == nil {
			return hraft.ErrLogNotFound
		}
		return decodeLog(index, v, l)
	})
}

// StoreLog stores one entry.
func (s *Store) StoreLog(l *hraft.Log) error { return s.StoreLogs([]*hraft.Log{l}) }

// StoreLogs stores entries, and the staged commit index, in one transaction.
func (s *Store) StoreLogs(logs []*hraft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	s.mu.Lock()
	first, last, staged, commit := s.first, s.last, s.staged, s.commit
	s.mu.Unlock()
	var grown int64
	err := s.update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketLog)
		b.FillPercent = appendFill
		for _, l := range logs {
			k, v := indexKey(l.Index), encodeLog(l)
			if old := b.Get(k); l.Index <= last && old != nil {
				grown -= int64(len(k) + len(old))
			}
			if err := b.Put(k, v); err != nil {
				return err
			}
			grown += int64(len(k) + len(v))
			if first == 0 || l.Index < first {
				first = l.Index
			}
			last = max(last, l.Index)
		}
		staged = min(staged, last)
		if staged > commit {
			return putCommit(tx, staged)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store %d log entries: %w", len(logs), err)
	}
	s.bytes.Add(grown)
	s.mu.Lock()
	s.first, s.last, s.commit = first, last, max(s.commit, staged)
	s.mu.Unlock()
	return nil
}

func putCommit(tx *bolt.Tx, i uint64) error {
	return tx.Bucket(bucketMeta).Put(keyCommit, encodeStable(keyCommit, indexKey(i)))
}

// StageCommitIndex keeps the commit index for the next StoreLogs.
func (s *Store) StageCommitIndex(i uint64) error {
	s.mu.Lock()
	s.staged = max(s.staged, i)
	s.mu.Unlock()
	return nil
}

// GetCommitIndex returns the commit index on the disk, at most the last index.
func (s *Store) GetCommitIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return min(s.commit, s.last), nil
}

// PersistedCommit is the commit index on the disk as it was written: above the
// last index only when entries went into a snapshot since.
func (s *Store) PersistedCommit() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commit
}

// RecordCommitted writes the commit index by itself. i must be of an entry that
// this store holds and that was applied: a clean stop, which no further entry
// follows, uses it.
func (s *Store) RecordCommitted(i uint64) error {
	s.mu.Lock()
	i = min(i, s.last)
	known := i <= s.commit
	s.mu.Unlock()
	if known {
		return nil
	}
	if err := s.update(func(tx *bolt.Tx) error { return putCommit(tx, i) }); err != nil {
		return fmt.Errorf("record commit index %d: %w", i, err)
	}
	s.mu.Lock()
	s.commit = max(s.commit, i)
	s.mu.Unlock()
	return nil
}

// DeleteRange deletes lo..hi inclusive, in transactions of a bounded size. A
// crash in between leaves no hole: the end of the log goes from the top down,
// its beginning from the bottom up.
func (s *Store) DeleteRange(lo, hi uint64) error {
	s.mu.Lock()
	suffix := hi >= s.last
	s.mu.Unlock()
	for {
		done, err := s.deleteSome(lo, hi, suffix)
		if err != nil {
			return fmt.Errorf("delete log entries %d to %d: %w", lo, hi, err)
		}
		if done {
			return nil
		}
	}
}

func (s *Store) deleteSome(lo, hi uint64, suffix bool) (done bool, err error) {
	var freed int64
	var first, last uint64
	err = s.update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketLog)
		keys, size := someKeys(b, lo, hi, suffix)
		for _, k := range keys {
			if err := b.Delete(k); err != nil {
				return err
			}
		}
		freed, done = size, len(keys) < deleteChunk
		return nil
	})
	if err != nil {
		return false, err
	}
	// Not in the same transaction: bbolt's Last loops for ever over the pages
	// that the deletes left empty (v1.5.0).
	err = s.view(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketLog).Cursor()
		if k, _ := c.First(); k != nil {
			first = binary.BigEndian.Uint64(k)
		}
		if k, _ := c.Last(); k != nil {
			last = binary.BigEndian.Uint64(k)
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	s.bytes.Add(-freed)
	s.mu.Lock()
	s.first, s.last = first, last
	s.mu.Unlock()
	return done, nil
}

// someKeys copies up to deleteChunk keys of lo..hi, from the top when top.
func someKeys(b *bolt.Bucket, lo, hi uint64, top bool) (keys [][]byte, size int64) {
	c := b.Cursor()
	next := c.Next
	k, v := c.Seek(indexKey(lo))
	if top {
		next = c.Prev
		k, v = c.Last()
	}
	for ; k != nil && len(keys) < deleteChunk; k, v = next() {
		i := binary.BigEndian.Uint64(k)
		if i < lo || i > hi {
			break
		}
		keys = append(keys, append([]byte(nil), k...))
		size += int64(len(k) + len(v))
	}
	return keys, size
}

// Set writes one stable value.
func (s *Store) Set(key, val []byte) error {
	err := s.update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketStable).Put(key, encodeStable(key, val))
	})
	if err != nil {
		return fmt.Errorf("set %q: %w", key, err)
	}
	return nil
}

// Get reads one stable value, nil when it was never set.
func (s *Store) Get(key []byte) (val []byte, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketStable).Get(key)
		if v == nil {
			return nil
		}
		val, err = decodeStable(key, v)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get %q: %w", key, err)
	}
	return val, nil
}

// SetUint64 writes one stable number.
func (s *Store) SetUint64(key []byte, val uint64) error { return s.Set(key, indexKey(val)) }

// GetUint64 reads one stable number, 0 when it was never set.
func (s *Store) GetUint64(key []byte) (uint64, error) {
	b, err := s.Get(key)
	if err != nil || b == nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("get %q: %w", key, corruptf("number of %d bytes", len(b)))
	}
	return binary.BigEndian.Uint64(b), nil
}

func (s *Store) update(f func(*bolt.Tx) error) error {
	return protect(func() error { return s.db.Update(f) })
}

func (s *Store) view(f func(*bolt.Tx) error) error {
	return protect(func() error { return s.db.View(f) })
}

// protect turns a panic of bbolt, and a fault of its memory map (the file
// shrank, the disk cannot be read), into a *CorruptError.
func protect(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if p := recover(); p != nil {
			err = corruptf("%v", p)
		}
	}()
	return f()
}
