package node

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/affinity"
	"github.com/vpnlb/vpnlb/cluster/health"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/sstp"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/node/certs"
	"github.com/vpnlb/vpnlb/node/config"
)

// tlsWorld is a spec with a VIP of each mode that ends TLS, and one that does not.
func tlsWorld(t *testing.T) *rig {
	r := world(t)
	for i, name := range []string{"ec", "rsa", "own", "idle"} {
		r.do(state.PutCertificate{Certificate: state.CertificatePlace{Name: name, SHA256: [32]byte{byte(i + 1)}, Path: "/" + name}})
	}
	put := func(v state.VIP) {
		old, ok := r.spec().VIPByName(v.Name)
		if ok {
			v.ID, v.Addr, v.ClientBits = old.ID, old.Addr, old.ClientBits
		}
		p := state.PutVIP{VIP: v}
		if ok {
			p.Expect = old.Version
		}
		r.do(p)
	}
	put(state.VIP{Name: "vpn", SSTP: state.SSTPOffload, Certificates: []string{"ec", "rsa"}, Transparent: true})
	put(state.VIP{Name: "lab", SSTP: state.SSTPReencrypt, Certificates: []string{"rsa"}})
	r2, _ := r.spec().BackendByName("r2")
	b := *r2
	b.SSTPPort, b.Certificate = 8080, "own"
	r.do(state.PutBackend{Backend: b, Expect: r2.Version})
	r.do(state.SetHealth{Backend: b.ID, Class: state.ClassTCP, Verdict: state.VerdictUp, Previous: b.Health[state.ClassTCP-1].Index})
	return r
}

// opened gives certificates as a book has them; those named cannot be shown.
func opened(spec *state.Spec, broken ...string) (out []certs.Opened) {
	for _, c := range spec.Certs {
		o := certs.Opened{CertificatePlace: c}
		if slices.Contains(broken, c.Name) {
			o.Fault = "it is broken"
		} else {
			o.Certificate = &certs.Certificate{Hash: c.SHA256, TLS: &tls.Certificate{Leaf: &x509.Certificate{}}}
		}
		out = append(out, o)
	}
	return out
}

func desiredText(d *sstp.Desired) string {
	var b strings.Builder
	for _, s := range d.Services {
		fmt.Fprintf(&b, "service %d %s %s mode %d bits %d transparent %v\n", s.VIP, s.Name, s.Addr, s.Mode, s.ClientBits, s.Transparent)
	}
	for _, x := range d.Targets {
		fmt.Fprintf(&b, "target %d vip %d %s %s certificate %q refuse %v\n", x.Slot, x.VIP, x.Name, x.Addr, x.Certificate, x.Refuse)
	}
	for _, c := range d.Certificates {
		fmt.Fprintf(&b, "certificate %s %x\n", c.Name, c.Hash[:2])
	}
	fmt.Fprintf(&b, "tickets %d, connections %d, per source %d\n", len(d.TicketKeys), d.Limits.Connections, d.Limits.PerSource)
	return b.String()
}

func TestRenderSSTPGolden(t *testing.T) {
	spec := tlsWorld(t).spec()
	var out bytes.Buffer
	for _, broken := range [][]string{nil, {"ec"}, {"own", "rsa"}} {
		d := RenderSSTP(spec, opened(spec, broken...), make([][32]byte, 2), config.SSTP{Connections: 100, PerSource: 5})
		fmt.Fprintf(&out, "broken %v\n%s\n", broken, desiredText(&d))
	}
	golden(t, t.Name()+".txt", out.Bytes())
	d := RenderSSTP(spec, opened(spec), nil, config.SSTP{Decoy: []byte("<p>hello")})
	if got := d.Services[0].Decoy; got.Status != 200 || string(got.Body) != "<p>hello" || config.MaxDecoy != sstp.MaxDecoyBytes {
		t.Errorf("decoy %+v, at most %d bytes", got, config.MaxDecoy)
	}
	if d := RenderSSTP(world(t).spec(), nil, nil, config.SSTP{}); len(d.Services)+len(d.Targets)+len(d.Certificates) != 0 {
		t.Errorf("without such a mode: %+v", d)
	}
}

func TestSSTPFault(t *testing.T) {
	spec := tlsWorld(t).spec()
	vpn, _ := spec.VIPByName("vpn")
	lab, _ := spec.VIPByName("lab")
	for _, tt := range []struct {
		vip    *state.VIP
		broken []string
		want   string
	}{
		{vpn, nil, ""},
		{vpn, []string{"ec"}, "for server r1: certificate ec: it is broken"}, // it pins that, and names none
		{vpn, []string{"rsa"}, ""}, // nobody pins that
		{vpn, []string{"idle"}, ""},
		{vpn, []string{"ec", "rsa"}, "for server r1: certificate ec: it is broken"},
		{vpn, []string{"own"}, "for server r2: certificate own: it is broken"},
		{lab, []string{"own", "ec"}, ""},
		{lab, []string{"rsa"}, "for server l1: certificate rsa: it is broken"},
	} {
		if got := sstpFault(spec, tt.vip, opened(spec, tt.broken...)); got != tt.want {
			t.Errorf("%s without %v: %q, want %q", tt.vip.Name, tt.broken, got, tt.want)
		}
	}
	if got := sstpFault(spec, vpn, nil); got != "for server r1: certificate ec is not open yet" {
		t.Errorf("nothing open: %q", got)
	}
	bare := *vpn
	bare.Certificates = nil
	if got := sstpFault(spec, &bare, nil); !strings.Contains(got, "has no certificate") {
		t.Errorf("no certificate: %q", got)
	}
}

// The prober asks the port that the nodes dial, and for the certificate that the
// server must show where TLS goes on to it.
func TestProbeTargets(t *testing.T) {
	spec := tlsWorld(t).spec()
	got := map[string]string{}
	for _, x := range health.TargetsOf(spec) {
		b, _ := spec.BackendByID(x.Backend)
		if x.SSTP == nil {
			got[b.Name] = "none"
			continue
		}
		got[b.Name] = fmt.Sprintf("%d tls %v leaf %x %s", x.SSTP.Port, x.SSTP.TLS, x.SSTP.Leaf[:1], x.SSTP.LeafName)
	}
	for name, want := range map[string]string{
		"r1": "80 tls false leaf 00 ", "r2": "8080 tls false leaf 00 ", "l1": "443 tls true leaf 02 rsa", "s1": "443 tls true leaf 00 ",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
}

// Tables are built anew when something that matters changed, not with each index.
func TestChooserKeepsTables(t *testing.T) {
	r := tlsWorld(t)
	set := Render(r.spec())
	c := &chooser{dump: func() *table.Set { return set }, entry: func(table.Key) (table.Entry, bool) { return table.Entry{}, false }}
	vpn, _ := r.spec().VIPByName("vpn")
	client := netip.MustParseAddr("198.18.0.9")
	if _, ok := c.choose(vpn.Place+9, client); ok {
		t.Error("a VIP that is not there has a server")
	}
	if _, ok := c.choose(vpn.Place, netip.MustParseAddr("2001:db8::1")); ok {
		t.Error("a client of the other family has a server")
	}
	r.do(state.Tick{})
	first, next := c.current(), *set
	next.Index++
	set = &next
	if c.current() != first {
		t.Error("another index makes other tables")
	}
	r.verdict("r1", state.VerdictDown)
	set = Render(r.spec())
	if c.current() == first {
		t.Error("a verdict makes no other tables")
	}
	set = nil
	if _, ok := c.choose(vpn.Place, client); ok {
		t.Error("a server without tables")
	}
}

// A book of evidence offers until it is answered, the strongest last.
func TestEvidenceBook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		offers := make(chan table.Evidence, 100)
		b := newEvidenceBook(func(all []table.Evidence) {
			for _, e := range all {
				offers <- e
			}
		})
		go b.run(t.Context())
		take := func() (n int, last table.Evidence) {
			for {
				select {
				case last = <-offers:
					n++
				default:
					return n, last
				}
			}
		}
		key := table.Key{Client: [16]byte{1}, Class: table.TCP}
		weak := table.Evidence{Key: key, Slot: 1, Saw: 7, Level: table.EarnedAuth, Opening: true}
		strong := table.Evidence{Key: key, Slot: 1, Level: table.Confirmed}
		b.add(weak)
		b.add(strong) // left out by a learner that is busy with the weak one
		if n, last := take(); n != 2 || last.Level != table.Confirmed || !last.Opening || last.Saw != 7 {
			t.Errorf("%d offers, last %+v", n, last)
		}
		if b.answered(table.Evidence{Key: key, Slot: 2}, table.Stored) {
			t.Error("evidence of another server is taken for its own")
		}
		if !b.answered(weak, table.Stored) {
			t.Error("its own evidence is not known")
		}
		time.Sleep(2 * evidenceTick)
		if n, last := take(); n != 1 || last.Level != table.Confirmed {
			t.Errorf("after the answer to the weak one: %d offers, last %+v", n, last)
		}
		time.Sleep(3 * evidenceRepeat)
		if n, _ := take(); n < 2 {
			t.Errorf("unanswered: %d offers", n)
		}
		b.answered(strong, table.Refused)
		time.Sleep(evidenceQuiet - 2*evidenceTick)
		if n, _ := take(); n != 0 {
			t.Errorf("refused: %d offers at once", n)
		}
		time.Sleep(3 * evidenceTick)
		if n, _ := take(); n == 0 {
			t.Error("refused: never offered again")
		}
		b.answered(strong, table.Stored)
		if time.Sleep(time.Minute); b.answered(strong, table.Stored) {
			t.Error("what was answered is still kept")
		}
		b.add(weak)
		b.add(table.Evidence{Key: key, Slot: 3, Level: table.EarnedAuth}) // the client went elsewhere
		if _, last := take(); last.Slot != 3 || last.Saw != 0 {
			t.Errorf("the last offer is %+v", last)
		}
		pending := func() int { n, _ := b.counts(); return n }
		if b.answered(weak, table.Superseded); pending() != 1 {
			t.Error("the answer to the old server ends the new one's evidence")
		}
		time.Sleep(evidenceLife + 2*evidenceTick)
		if take(); pending() != 0 {
			t.Error("evidence is kept for ever")
		}
		b = newEvidenceBook(func([]table.Evidence) {})
		for i := range affinity.MaxPending + 5 {
			b.add(table.Evidence{Key: table.Key{Client: [16]byte{2, byte(i >> 16), byte(i >> 8), byte(i)}}, Slot: 1})
		}
		if n, lost := b.counts(); n != affinity.MaxPending || lost != 5 {
			t.Errorf("%d kept, %d lost", n, lost)
		}
	})
}

func TestTickets(t *testing.T) {
	var tk tickets
	now := state.Time(0)
	var inUse [ticketBytes]byte
	for i := range 6 {
		now = now.Add(ticketRotation)
		next := tk.next(now)
		back, err := decodeTickets(next.encode())
		if err != nil || back.made != now || !slices.Equal(back.keys, next.keys) {
			t.Fatalf("%+v comes back as %+v, %v", next, back, err)
		}
		use := next.inUse()
		if want := min(i+2, ticketKeys); len(use) != want {
			t.Errorf("rotation %d: %d keys, want %d", i, len(use), want)
		}
		if i > 0 && (use[0] != tk.inUse()[1] || !slices.Contains(use, inUse)) {
			t.Errorf("rotation %d: tickets are made by a key that nobody was told of, or old ones do not open", i)
		}
		tk, inUse = next, use[0]
	}
	for _, bad := range [][]byte{nil, {formatTickets}, append([]byte{2}, tk.encode()[1:]...), tk.encode()[:len(tk.encode())-1], append(tk.encode(), make([]byte, ticketBytes)...)} {
		if _, err := decodeTickets(bad); err == nil {
			t.Errorf("%d bytes are accepted", len(bad))
		}
	}
	spec := &state.Spec{Removed: []state.RemovedMember{{Index: 7}}}
	for _, tt := range []struct {
		version    uint64
		now        state.Time
		stale, all bool
	}{
		{8, now.Add(ticketRotation - 1), false, false},
		{8, now.Add(ticketRotation), true, false},
		{6, now, true, true},
	} {
		if stale, all := staleTickets(spec, &state.Secret{Version: tt.version}, now, tt.now); stale != tt.stale || all != tt.all {
			t.Errorf("%+v: %v, %v", tt, stale, all)
		}
	}
}

func TestExpiryLevel(t *testing.T) {
	end := time.Date(2026, 6, 30, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	for before, want := range map[time.Duration]int{
		31 * day: -1, 30 * day: 30, 15 * day: 30, 14 * day: 14, 7 * day: 7, 2 * day: 7, day: 1, time.Minute: 1, 0: 0, -day: 0,
	} {
		if got := expiryLevel(end, end.Add(-before)); got != want {
			t.Errorf("%v before: %d, want %d", before, got, want)
		}
	}
}

// Room is looked for twice: for the place, and for the secret beside those that
// the cluster makes itself.
func TestRoomForCertificate(t *testing.T) {
	world := func(places, sealed int, own ...string) *state.Spec {
		spec := &state.Spec{}
		for _, name := range own {
			spec.Secrets = append(spec.Secrets, state.Secret{Name: name})
		}
		for i := range places {
			name := fmt.Sprintf("c%d", i)
			spec.Certs = append(spec.Certs, state.CertificatePlace{Name: name})
			if i < sealed {
				spec.Secrets = append(spec.Secrets, state.Secret{Name: state.SecretOfCertificate(name)})
			}
		}
		return spec
	}
	const own = 3
	for _, tt := range []struct {
		spec   *state.Spec
		name   string
		sealed bool
		want   string
	}{
		{world(0, 0, "ca", "gossip"), "new", true, ""},
		{world(state.MaxCerts-1, 0, "ca", "gossip"), "new", false, ""},
		{world(state.MaxCerts, 0, "ca", "gossip"), "new", false, "certificates are the most a cluster keeps"},
		{world(state.MaxCerts, 0, "ca", "gossip"), "c0", false, ""},
		{world(state.MaxSecrets-own-1, state.MaxSecrets-own-1, "ca", "gossip"), "new", true, ""},
		{world(state.MaxSecrets-own, state.MaxSecrets-own, "ca", "gossip"), "new", true, "61 certificates are the most whose keys"}, // tickets come later
		{world(state.MaxSecrets-own, state.MaxSecrets-own, "ca", "gossip", "tickets"), "new", true, "whose keys the cluster keeps"},
		{world(state.MaxSecrets-own, state.MaxSecrets-own, "ca", "gossip"), "new", false, ""},
		{world(state.MaxSecrets-own, state.MaxSecrets-own, "ca", "gossip"), "c0", true, ""},
		{world(state.MaxSecrets-own+1, state.MaxSecrets-own, "ca", "gossip"), "c61", true, "whose keys the cluster keeps"}, // from a file into the agreement
	} {
		err := roomForCertificate(tt.spec, tt.name, tt.sealed)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%d places, %d secrets, %s: %v, want %q", len(tt.spec.Certs), len(tt.spec.Secrets), tt.name, err, tt.want)
		}
	}
}

func TestUseFirst(t *testing.T) {
	for _, tt := range []struct {
		names []string
		want  string
	}{{nil, "new"}, {[]string{"old"}, "new"}, {[]string{"old", "rsa"}, "new rsa"}, {[]string{"old", "new"}, "new old"}} {
		before := slices.Clone(tt.names)
		if got := strings.Join(useFirst(tt.names, "new"), " "); got != tt.want || !slices.Equal(tt.names, before) {
			t.Errorf("%v: %s, want %s", before, got, tt.want)
		}
	}
}

// A change of certificate can be left and taken up anywhere: what is next follows
// from where it stands alone.
func TestRotation(t *testing.T) {
	r := tlsWorld(t)
	seen := map[string]observed{}
	look := func() admin.Rotation {
		t.Helper()
		spec := r.spec()
		v, _ := spec.VIPByName("vpn")
		place, _ := spec.CertificateByName("idle")
		out, err := rotation(spec, v, place, time.Now(), seen)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	expect := func(states, title string) {
		t.Helper()
		got := look()
		var words []string
		for _, s := range got.Servers {
			words = append(words, s.Name+"="+s.State)
		}
		if strings.Join(words, " ") != states || got.Done != (got.Next == nil) || got.Next != nil && !strings.Contains(got.Next.Title, title) || got.Done != (title == "done") {
			t.Errorf("states %v, next %+v; want %s, %s", words, got.Next, states, title)
		}
	}
	set := func(name string, a state.AdminState) {
		b, _ := r.spec().BackendByName(name)
		r.do(state.SetBackendAdmin{ID: b.ID, Admin: a})
	}
	use := func(name string) {
		old, _ := r.spec().BackendByName(name)
		b := *old
		b.Certificate = "idle"
		r.do(state.PutBackend{Backend: b, Expect: old.Version})
	}
	// r3 is removed; r2 drains.
	expect("r1=waiting r2=waiting r4=waiting", "server 1 of 3, r1: no new clients")
	set("r1", state.AdminDrain)
	expect("r1=waiting r2=waiting r4=waiting", "r1: certificate and hash change together")
	if n := look().Next; n.Server != "r1" || n.Script == "" || len(n.Before) == 0 || n.After[0] != "vpnlb cert rotate idle --vip vpn --server r1" {
		t.Errorf("the step is %+v", n)
	} else if !strings.Contains(n.Script, n.After[0]) {
		t.Errorf("the script does not name the step after it, %s", n.After[0])
	}
	set("r1", state.AdminOffline)
	if n := look().Next; len(n.Before) != 0 {
		t.Errorf("it is offline, and should be made so by %v", n.Before)
	}
	use("r1")
	expect("r1=switched r2=waiting r4=waiting", "r1: back in service")
	set("r1", state.AdminEnabled)
	expect("r1=switched r2=waiting r4=waiting", "r2: certificate and hash change together")
	if notes := look().Notes; len(notes) != 1 || !strings.Contains(notes[0], "no call on r1") {
		t.Errorf("notes %q", notes)
	}
	seen["r1"] = observed{alarm: "aborts after Call Connected", calls: 1}
	expect("r1=failing r2=waiting r4=waiting", "r1 refuses calls")
	seen["r1"] = observed{calls: 2}
	seen["r2"] = observed{alarm: "about its old certificate"}
	expect("r1=verified r2=waiting r4=waiting", "r2: certificate and hash change together")
	delete(seen, "r2")
	use("r2")
	set("r2", state.AdminEnabled)
	use("r4")
	expect("r1=verified r2=switched r4=switched", "the new certificate becomes the VIP's own")
	v, _ := r.spec().VIPByName("vpn")
	p := state.PutVIP{VIP: *v, Expect: v.Version}
	p.VIP.Certificates = useFirst(v.Certificates, "idle")
	r.do(p)
	expect("r1=verified r2=switched r4=switched", "done")
}

// What a client says proves nothing of the server.
func TestObservedCalls(t *testing.T) {
	m := &member{}
	if got := m.observedCalls("new"); len(got) != 0 {
		t.Errorf("without that part: %+v", got)
	}
	server := &recorder{calls: []sstp.Session{
		{Target: "r1", Certificate: "new", State: "connected"},
		{Target: "r2", Certificate: "old", State: "connected", Proven: true},
		{Target: "r3", Certificate: "new", State: "connected", Proven: true},
		{Target: "r3", Certificate: "new", State: "closing", Proven: true},
	}}
	server.status.Alarms = []sstp.Alarm{{Target: "r4", Text: "aborts"}}
	m.offload.Store(recording(server))
	got := m.observedCalls("new")
	if len(got) != 2 || got["r3"] != (observed{calls: 2}) || got["r4"] != (observed{alarm: "aborts"}) {
		t.Errorf("%+v", got)
	}
}

func TestRotatedVIP(t *testing.T) {
	spec := tlsWorld(t).spec()
	for name, want := range map[string]string{"vpn": "", "lab": "", "": "name the one that is meant with --vip", "six": "is in mode passthrough", "none": "no VIP is called"} {
		v, err := rotatedVIP(spec, name)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) || err == nil && v.Name != name {
			t.Errorf("%q: %v, %v", name, v, err)
		}
	}
	if _, err := rotatedVIP(world(t).spec(), ""); err == nil || !strings.Contains(err.Error(), "no VIP ends") {
		t.Errorf("none ends TLS: %v", err)
	}
}

// One choice for each connection: what it costs beside a handshake.
func BenchmarkChoose(b *testing.B) {
	set := &table.Set{Index: 1, Generation: 1, TableSize: state.DefaultTableSize, VIPs: []table.VIP{{Addr: netip.MustParseAddr("203.0.113.10"), ClientBits: 64}}}
	for i := range 20 {
		set.Backends = append(set.Backends, table.Backend{Slot: table.Slot(i + 1), ID: uint32(i + 1), Weight: 100,
			Addr: netip.AddrFrom4([4]byte{198, 51, 100, byte(101 + i)}), Stance: [table.Classes]table.Stance{table.Take, table.Take}})
	}
	c := &chooser{dump: func() *table.Set { return set }, entry: func(table.Key) (table.Entry, bool) { return table.Entry{}, false }}
	for b.Loop() {
		if _, ok := c.choose(0, netip.MustParseAddr("198.18.0.9")); !ok {
			b.Fatal("no server")
		}
	}
}
