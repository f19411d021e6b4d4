package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/node/admin"
)

const (
	hashBound = 10 * time.Second
	mapsBound = 10 * time.Second // from agreed to in every kernel; longer than a refused Learn is held back
)

// sameState checks that all members hold the same state at the same index.
func (d *drill) sameState(ctx context.Context) error {
	var last string
	err := until(ctx, hashBound, "equal state on all members", func() (bool, error) {
		states := map[string]admin.Status{}
		last = ""
		for _, n := range d.l.members() {
			var st admin.Status
			if err := admin.NewClient(d.l.socket(n)).Get(ctx, admin.PathStatus+"?hash=1", &st); err != nil {
				return false, nil
			}
			states[n] = st
			last += fmt.Sprintf(" %s=%.24s", n, fmt.Sprintf("%d:%s", st.Index, st.StateHash))
		}
		return agreed(states), nil
	})
	if err != nil && ctx.Err() == nil {
		d.failf("%v:%s", err, last)
		return nil
	}
	return err
}

// agreed reports whether members have one state, and said which.
func agreed(states map[string]admin.Status) bool {
	seen := map[string]bool{}
	for _, st := range states {
		if st.Index == 0 || st.StateHash == "" {
			return false
		}
		seen[fmt.Sprintf("%d:%s", st.Index, st.StateHash)] = true
	}
	return len(seen) == 1
}

// held is what a record says: whose client somebody is.
type held struct {
	client netip.Addr
	class  string
}

// sameRecords checks that the kernel of every member has the records that are agreed,
// each with its server, and no others.
func (d *drill) sameRecords(ctx context.Context) error {
	for _, n := range d.l.members() {
		why := ""
		err := until(ctx, mapsBound, n+"'s kernel to hold the records that are agreed", func() (bool, error) {
			want, err := d.l.recordsAgreed(ctx, n)
			if err != nil {
				return false, err
			}
			have, err := d.l.recordsHeld(ctx, n)
			if err != nil {
				why = err.Error() // read while it was written
				return false, nil
			}
			why = differ(want, have)
			if len(want) == 0 && d.l.st.Options.Clients > 0 {
				why = "none are agreed, though there are clients"
			}
			return why == "", nil
		})
		if err != nil && ctx.Err() != nil {
			return err
		}
		if err != nil {
			d.failf("%v: %s", err, why)
		}
	}
	return nil
}

// recordBound is how long a client's record may take until every kernel has it. Where
// servers answer directly it is earned by two packets, a tick apart.
const recordBound = 30 * time.Second

// known waits until every member's kernel has an IKE record of each client.
func (d *drill) known(ctx context.Context, clients []netip.Addr) error {
	start := time.Now()
	for _, n := range d.l.members() {
		missing := 0
		err := until(ctx, recordBound, n+"'s kernel to hold a record of each client", func() (bool, error) {
			have, err := d.l.recordsHeld(ctx, n)
			if err != nil {
				return false, nil // read while it was written
			}
			missing = 0
			for _, a := range clients {
				if a.Is6() {
					a = netip.PrefixFrom(a, keyBits6).Masked().Addr()
				}
				if _, ok := have[held{a, "ike"}]; !ok {
					missing++
				}
			}
			return missing == 0, nil
		})
		if err != nil {
			return fmt.Errorf("%w: %d of %d have none", err, missing, len(clients))
		}
	}
	d.notef("all nodes know %d clients after %s", len(clients), time.Since(start).Round(time.Millisecond))
	return nil
}

// differ says in what a kernel differs from what is agreed; "": in nothing.
func differ(want, have map[held]netip.Addr) string {
	missing, other, more, example := 0, 0, 0, ""
	for k, server := range want {
		got, ok := have[k]
		switch {
		case !ok:
			missing++
		case got != server || !server.IsValid():
			other++
		default:
			continue
		}
		example = fmt.Sprintf("%s %s is of %s, in the kernel %s", k.class, k.client, server, got)
	}
	for k, server := range have {
		if _, ok := want[k]; !ok {
			more++
			example = fmt.Sprintf("%s %s, in the kernel %s, is nobody's", k.class, k.client, server)
		}
	}
	if example == "" {
		return ""
	}
	return fmt.Sprintf("of %d records %d are missing and %d name another server, %d are too many; %s", len(want), missing, other, more, example)
}

// recordsAgreed asks a member for its state's records.
func (l *Lab) recordsAgreed(ctx context.Context, node string) (map[held]netip.Addr, error) {
	var list admin.Affinities
	if err := admin.NewClient(l.socket(node)).Get(ctx, admin.PathAffinityList+"?limit=0", &list); err != nil {
		return nil, fmt.Errorf("list records of %s: %w", node, err)
	}
	var st admin.Status
	if err := admin.NewClient(l.socket(node)).Get(ctx, admin.PathStatus, &st); err != nil {
		return nil, fmt.Errorf("status of %s: %w", node, err)
	}
	servers := map[string]netip.Addr{}
	for _, b := range st.Backends {
		servers[b.Name] = b.Addr
	}
	out := map[held]netip.Addr{}
	for _, r := range list.Records {
		out[held{r.Client, r.Class}] = servers[r.Backend]
	}
	return out, nil
}

// recordsHeld reads the records in a node's kernel, by the binary that runs there.
func (l *Lab) recordsHeld(ctx context.Context, node string) (map[held]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, cliBound)
	defer cancel()
	binary := l.st.Options.Binary
	if p := l.st.Processes[node]; len(p.Args) > 0 {
		binary = p.Args[0]
	}
	cmd := exec.CommandContext(ctx, binary, "plane", "dump", "--config", l.path(node, "node.yaml"))
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("vpnlb plane dump on %s: %w: %s", node, err, bytes.TrimSpace(stderr.Bytes()))
	}
	out, err := parseDump(b)
	if err != nil {
		return nil, fmt.Errorf("vpnlb plane dump on %s: %w", node, err)
	}
	return out, nil
}

// parseDump finds the records in what "vpnlb plane dump" writes:
//
//	backend 3 198.51.100.101 vip=1 ike=take ...
//	affinity 198.18.16.1 class=ike slot=3 state=confirmed ...
func parseDump(b []byte) (map[held]netip.Addr, error) {
	servers, out := map[string]netip.Addr{}, map[held]netip.Addr{}
	type line struct{ client, class, slot string }
	var lines []line
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		switch {
		case len(f) > 2 && f[0] == "backend":
			a, err := netip.ParseAddr(f[2])
			if err != nil {
				return nil, fmt.Errorf("%q: %w", sc.Text(), err)
			}
			servers[f[1]] = a
		case len(f) > 3 && f[0] == "affinity":
			lines = append(lines, line{f[1], strings.TrimPrefix(f[2], "class="), strings.TrimPrefix(f[3], "slot=")})
		}
	}
	for _, x := range lines {
		client, err := netip.ParseAddr(x.client)
		if err != nil {
			return nil, fmt.Errorf("client %q: %w", x.client, err)
		}
		out[held{client, x.class}] = servers[x.slot]
	}
	return out, nil
}
