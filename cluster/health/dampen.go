package health

import "math"

// run counts equal results in a row of one port. A neutral answer ends both
// other runs: it is no evidence, but it is not silence either.
type run struct {
	misses, answers, neutrals uint8
}

func (r *run) add(res Result) {
	switch res {
	case ResultAnswer:
		*r = run{answers: bump(r.answers)}
	case ResultMiss:
		*r = run{misses: bump(r.misses)}
	case ResultNeutral:
		*r = run{neutrals: bump(r.neutrals)}
	}
}

func bump(n uint8) uint8 {
	if n == math.MaxUint8 {
		return n
	}
	return n + 1
}

// damped is the last opinion that enough equal results made.
type damped struct {
	last Opinion // unknown, up or down
}

// update folds the ports of one class into an opinion: down after DownAfter
// misses on either port, up after UpAfter answers on both, neutral while a
// port gives nothing but neutral answers. In between the last one stands.
func (d *damped) update(ports []run, t Timing) Opinion {
	up, down, neutral := true, false, false
	for _, r := range ports {
		up = up && r.answers >= t.UpAfter
		down = down || r.misses >= t.DownAfter
		neutral = neutral || r.neutrals >= t.DownAfter
	}
	switch {
	case down:
		d.last = OpinionDown
	case neutral:
		return OpinionNeutral
	case up:
		d.last = OpinionUp
	}
	return d.last
}
