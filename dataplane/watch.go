package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

const (
	// forgetDelay gathers a burst of changes into one new next-hop serial.
	forgetDelay = 5 * time.Millisecond
	// routesInterval is the least time between two looks at the whole routing table.
	routesInterval = 100 * time.Millisecond
	// interfaceInterval is the level-triggered look at the interfaces; what the
	// kernel does not announce (xdp features) is seen then.
	interfaceInterval = time.Second
	// neighbourInterval is far below the kernel's 30 s until a neighbour is stale.
	neighbourInterval = 5 * time.Second
	// maxRoutes bounds the walk for gateways: a node may hold a full table.
	maxRoutes = 4096
	// maxNeighbours bounds what is remembered of neighbours, and refreshed.
	maxNeighbours = 4096
	// resubscribeDelay is the wait after netlink failed.
	resubscribeDelay = time.Second
)

type neighbour struct {
	index int
	addr  netip.Addr
}

// watcher follows routes, neighbours and links.
type watcher struct {
	plane  *Plane
	known  map[neighbour]string // hardware address of the valid ones
	failed bool                 // the last look at the routes
}

// watch follows netlink until ctx ends. After a failure it subscribes again.
func (p *Plane) watch(ctx context.Context) {
	for ctx.Err() == nil {
		w := &watcher{plane: p, known: make(map[neighbour]string)}
		if err := w.follow(ctx); err != nil {
			p.log.Warn("lost track of routes and neighbours", "error", err)
		}
		p.control.forgetNextHops()
		select {
		case <-ctx.Done():
		case <-time.After(resubscribeDelay):
		}
	}
}

func (w *watcher) follow(ctx context.Context) error {
	routes := make(chan netlink.RouteUpdate, 256)
	neighbours := make(chan netlink.NeighUpdate, 256)
	links := make(chan netlink.LinkUpdate, 256)
	failed := make(chan error, 8)
	note := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	done := make(chan struct{})
	defer close(done)
	ns := w.plane.ns.handle
	const buffer = 1 << 20
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{
		Namespace: &ns, ErrorCallback: note, ReceiveBufferSize: buffer}); err != nil {
		return fmt.Errorf("subscribe to routes: %w", err)
	}
	// The library's receiver closes the channel when it ends; until then it may wait for
	// somebody to take what it read. Deferred after close(done), so run before it.
	defer func() { go drain(routes) }()
	if err := netlink.NeighSubscribeWithOptions(neighbours, done, netlink.NeighSubscribeOptions{
		Namespace: &ns, ErrorCallback: note, ListExisting: true, ReceiveBufferSize: buffer}); err != nil {
		return fmt.Errorf("subscribe to neighbours: %w", err)
	}
	defer func() { go drain(neighbours) }()
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{
		Namespace: &ns, ErrorCallback: note, ReceiveBufferSize: buffer}); err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	defer func() { go drain(links) }()
	w.plane.control.forgetNextHops() // what changed before the subscription
	return w.loop(ctx, routes, neighbours, links, failed)
}

func drain[T any](c <-chan T) {
	for range c {
	}
}

func (w *watcher) loop(ctx context.Context, routes <-chan netlink.RouteUpdate, neighbours <-chan netlink.NeighUpdate,
	links <-chan netlink.LinkUpdate, failed <-chan error) error {
	interfaces := time.NewTicker(interfaceInterval)
	defer interfaces.Stop()
	var forget <-chan time.Time
	var looked time.Time // at the routes
	routed := true       // they changed since
	dirty := func() {
		if forget == nil {
			forget = time.After(max(forgetDelay, time.Until(looked.Add(routesInterval))))
		}
	}
	dirty()
	refresh := func() {
		changed, err := w.plane.refreshInterfaces()
		if err != nil {
			w.plane.log.Warn("cannot refresh interfaces", "error", err)
		}
		if changed {
			dirty()
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case _, ok := <-routes:
			if !ok {
				return fmt.Errorf("route subscription ended")
			}
			routed = true
			dirty()
		case n, ok := <-neighbours:
			if !ok {
				return fmt.Errorf("neighbour subscription ended")
			}
			if w.neighbourChanged(n) {
				dirty()
			}
		case _, ok := <-links:
			if !ok {
				return fmt.Errorf("link subscription ended")
			}
			refresh()
			dirty()
		case <-interfaces.C:
			refresh()
			// Rules are not announced to us, and an error must not last.
			var changed bool
			if changed, routed = w.lookAtRoutes(); changed {
				dirty()
			}
			looked = time.Now()
		case <-forget:
			forget = nil
			if routed {
				_, routed = w.lookAtRoutes()
				looked = time.Now()
			}
			w.plane.control.forgetNextHops()
		}
	}
}

// lookAtRoutes reports whether what they cover changed, and whether to look again.
func (w *watcher) lookAtRoutes() (changed, again bool) {
	changed, err := w.plane.mendRouted()
	if err != nil && !w.failed {
		w.plane.log.Warn("cannot read the routing table: next hops are cached by client", "error", err)
	}
	w.failed = err != nil
	return changed, w.failed
}

// neighbourChanged reports whether a neighbour's address or validity changed,
// not only how sure the kernel is of it.
func (w *watcher) neighbourChanged(n netlink.NeighUpdate) bool {
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return false
	}
	key := neighbour{n.LinkIndex, addr.Unmap()}
	const valid = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY
	mac := ""
	if n.Type == unix.RTM_NEWNEIGH && n.State&valid != 0 {
		mac = n.HardwareAddr.String()
	}
	if w.known[key] == mac {
		return false
	}
	if mac == "" {
		delete(w.known, key)
	} else if len(w.known) < maxNeighbours {
		w.known[key] = mac
	}
	return true
}

// keepNeighbours asks the kernel, again and again, to keep the next hops in use
// resolved: packets that the program forwards do not.
func (p *Plane) keepNeighbours(ctx context.Context) {
	tick := time.NewTicker(neighbourInterval)
	defer tick.Stop()
	for {
		if set := p.set.Load(); set != nil {
			if err := p.refreshNeighbours(set); err != nil {
				p.log.Warn("cannot refresh neighbours", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *Plane) refreshNeighbours(set *table.Set) error {
	hops := make(map[neighbour]bool)
	add := func(index int, ip []byte) {
		if addr, ok := netip.AddrFromSlice(ip); ok && index != 0 && len(hops) < maxNeighbours {
			hops[neighbour{index, addr.Unmap()}] = true
		}
	}
	for _, b := range set.Backends {
		routes, err := p.ns.netlink.RouteGet(b.Addr.AsSlice())
		if err != nil {
			continue // no route: doctor's and bgp's business
		}
		for _, r := range routes {
			if r.Gw != nil {
				add(r.LinkIndex, r.Gw)
			} else {
				add(r.LinkIndex, b.Addr.AsSlice())
			}
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes := 0
		err := p.ns.netlink.RouteListFilteredIter(family, &netlink.Route{}, 0, func(r netlink.Route) bool {
			add(r.LinkIndex, r.Gw)
			for _, path := range r.MultiPath {
				add(path.LinkIndex, path.Gw)
			}
			routes++
			return routes < maxRoutes
		})
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		if err := p.useNeighbours(hops, family); err != nil {
			return err
		}
	}
	return nil
}

// useNeighbours touches those that are stale or unknown. Permanent ones are left
// alone: NTF_USE would make them ordinary.
func (p *Plane) useNeighbours(hops map[neighbour]bool, family int) error {
	const well = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_DELAY | unix.NUD_PROBE
	have, err := p.ns.netlink.NeighList(0, family)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range have {
		if addr, ok := netip.AddrFromSlice(n.IP); ok && n.State&well != 0 {
			delete(hops, neighbour{n.LinkIndex, addr.Unmap()})
		}
	}
	for h := range hops {
		if h.addr.Is4() != (family == netlink.FAMILY_V4) {
			continue
		}
		err := p.ns.netlink.NeighSet(&netlink.Neigh{LinkIndex: h.index, Family: family,
			IP: h.addr.AsSlice(), Flags: netlink.NTF_USE})
		if err != nil {
			p.log.Debug("cannot refresh neighbour", "address", h.addr, "error", err)
		}
	}
	return nil
}
