package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/sstp/storm"
)

// Sizes and pass criteria of the storm drill.
const (
	stormName     = "storm"
	stormSources  = 200
	stormParallel = 600
	stormTime     = 15 * time.Second
	calmTime      = time.Second
	statusLimit   = time.Second // for a node to answer about itself, more than in calm: 0.5 s where the machine has nothing else to do
)

// sstpStorm sends hellos from many sources that never log in, while calls stand,
// once with each kind of key. The nodes' control planes must not notice.
func (d *drill) sstpStorm(ctx context.Context) error {
	defer d.sstpEnd(ctx)
	calls, err := d.sstpPlace(ctx, 1, 2, 3, 4)
	if err != nil {
		return err
	}
	before, err := d.control(ctx, 0)
	if err != nil {
		return err
	}
	calm := time.Now().Add(calmTime)
	usual, _, err := d.askWhile(ctx, func() bool { return time.Now().Before(calm) })
	if err != nil {
		return err
	}
	start := time.Now()
	if err := d.l.startStorm(); err != nil {
		return err
	}
	slowest, asked, err := d.askWhile(ctx, d.l.st.Processes[stormName].alive)
	var r storm.Result
	if err := errors.Join(err, d.l.endErrand(ctx, stormName, &r)); err != nil {
		return err
	}
	d.notef("%.0f hellos a second answered, %d refused, %d silent, %d failed %s", float64(r.Answered)/stormTime.Seconds(), r.Refused, r.Silent, r.Failed, r.Fault)
	if r.Answered < stormSources {
		d.failf("that was no storm")
	}
	d.within(fmt.Sprintf("the slowest of %d answers of status", asked), slowest, usual+statusLimit)
	after, err := d.control(ctx, time.Since(start))
	if err != nil {
		return err
	}
	if !maps.Equal(before, after) {
		d.failf("a term, a session or a route is not that of before: %v, then %v", before, after)
	}
	for i, was := range calls {
		d.stands(ctx, i, was, "after the storm")
	}
	return nil
}

func (l *Lab) startStorm() error {
	if err := l.inside(roleClient, func() error { return addLocal(scatterPrefix) }); err != nil {
		return err
	}
	cfg := storm.Config{To: netip.AddrPortFrom(vipAddr, httpsPort), Parallel: stormParallel, For: stormTime}
	for a := scatterPrefix.Addr().Next(); len(cfg.Sources) < stormSources; a = a.Next() {
		cfg.Sources = append(cfg.Sources, a)
	}
	return l.startErrand(stormName, cfg)
}

// askWhile asks every node for its status, again and again.
func (d *drill) askWhile(ctx context.Context, more func() bool) (slowest time.Duration, asked int, err error) {
	for more() {
		for _, n := range d.l.members() {
			start := time.Now()
			if _, err := d.l.status(ctx, n); err != nil {
				return slowest, asked, err
			}
			slowest = max(slowest, time.Since(start))
			asked++
		}
		if err := flow(ctx, pollInterval); err != nil {
			return slowest, asked, err
		}
	}
	return slowest, asked, nil
}

// control is what each node says of consensus, of its routers and of its routes;
// what has stood for less than since is named as new.
func (d *drill) control(ctx context.Context, since time.Duration) (map[string]string, error) {
	out := map[string]string{}
	for _, n := range d.l.members() {
		st, err := d.l.status(ctx, n)
		if err != nil {
			return nil, err
		}
		text := fmt.Sprintf("term %d", st.Term)
		for _, nb := range st.Neighbours {
			text += fmt.Sprintf(", %s %s", nb.Addr, nb.State)
			if up, err := time.ParseDuration(nb.Since); err != nil || up < since-time.Second { // it is rounded
				text += " anew"
			}
		}
		for _, v := range st.VIPs {
			text += fmt.Sprintf(", %s %s %s", v.Name, v.Announce, v.Reason)
			if v.SinceSeconds < since.Seconds()-1 {
				text += " anew"
			}
		}
		out[n] = text
	}
	return out, nil
}
