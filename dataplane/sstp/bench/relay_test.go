package bench

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
)

// ProfileCPU writes a profile from now on, until it is called with no name.
func (r *Relay) ProfileCPU(file string, _ *struct{}) error {
	if file == "" {
		pprof.StopCPUProfile()
		return nil
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return pprof.StartCPUProfile(f)
}

// ProfileMemory writes what is held now: objects to FILE.heap, stacks to FILE.stacks, and
// the runtime's own sums to FILE.txt. It does not collect garbage first.
func (r *Relay) ProfileMemory(file string, _ *struct{}) error {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	text := fmt.Sprintf("heap in use %d (objects %d, next collection at %d), idle %d of which returned %d, stacks %d, runtime %d, collections %d\n",
		m.HeapInuse, m.HeapAlloc, m.NextGC, m.HeapIdle, m.HeapReleased, m.StackInuse, m.MSpanInuse+m.MCacheInuse+m.GCSys+m.OtherSys+m.BuckHashSys, m.NumGC)
	err := os.WriteFile(file+".txt", []byte(text), 0o644)
	for name, suffix := range map[string]string{"heap": ".heap", "goroutine": ".stacks"} {
		f, failed := os.Create(file + suffix)
		if failed != nil {
			return errors.Join(err, failed)
		}
		err = errors.Join(err, pprof.Lookup(name).WriteTo(f, 0), f.Close())
	}
	return err
}
