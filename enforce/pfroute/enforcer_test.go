package pfroute

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// text is the whole table in order of its lines.
func (d desk) text() string {
	d.Helper()
	routes, err := readAll(d.s)
	if err != nil {
		d.Fatal(err)
	}
	var lines []string
	for _, r := range routes {
		lines = append(lines, enforcetest.Text(r))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (d desk) becomes(what string, holds func() bool) {
	d.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			d.Fatalf("never happened: %s\n%s", what, d.text())
		}
	}
}

// TestTunnels enforces what OpenVPN and wg-quick leave in a Mac's table:
// connect, two attacks, disconnect, and the table is what it was.
func TestTunnels(t *testing.T) {
	server := "203.0.113.5"
	halves := []string{"0.0.0.0/1", "128.0.0.0/1"}
	for name, c := range map[string]struct {
		hop     plan.Hop
		protect []string
	}{
		// route add -net 0.0.0.0 10.8.0.1 128.0.0.0
		"OpenVPN redirect-gateway def1": {peer, halves},
		// route -q -n add -inet 0.0.0.0/1 -interface utun3
		"wg-quick":     {utun, halves},
		"split tunnel": {peer, []string{"10.0.0.0/8", "172.31.0.0/16"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.add(to("0.0.0.0/0", en0))
			d.add(to("172.31.1.0/24", en0))
			before := d.text()
			e, stop := d.enforcer()
			d.add(to(server+"/32", en0))
			for _, p := range c.protect {
				d.add(to(p, c.hop))
			}
			d.open(e, c.protect, server)
			d.attack(c.protect[1], c.hop)
			if _, err := e.Close(t.Context(), "utun3"); err != nil {
				t.Fatal(err)
			}
			stop()
			for _, p := range append(c.protect, server+"/32") {
				_ = d.k.other(route8(2, to(p, c.hop)))
			}
			if after := d.text(); after != before {
				t.Errorf("the table is\n%s\nit was\n%s", after, before)
			}
		})
	}
}

func (d desk) enforcer() (e *enforce.Enforcer, stop func()) {
	e = enforce.New(d.s, &enforcetest.Journal{}, enforce.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	<-e.Ready()
	return e, func() {
		cancel()
		if err := <-done; err != nil {
			d.Errorf("run: %v", err)
		}
	}
}

func (d desk) open(e *enforce.Enforcer, protect []string, server string) {
	d.Helper()
	s := enforce.Session{Tunnel: "utun3", Servers: []enforce.Server{{Addr: netip.MustParseAddrPort(server + ":1194"), Proto: "udp"}}}
	for _, p := range protect {
		s.Protect = append(s.Protect, netip.MustParsePrefix(p))
	}
	st, err := e.Open(d.Context(), s)
	if err != nil || st.State != enforce.Enforcing {
		d.Fatalf("open: %+v, %v", st, err)
	}
	if got := d.at("172.31.1.0/24"); got.Dst.IsValid() {
		d.Errorf("a conflicting route stands: %s", enforcetest.Text(got))
	}
}

// attack adds a longer route, and turns the tunnel's own elsewhere.
func (d desk) attack(protected string, hop plan.Hop) {
	d.Helper()
	long := "172.31.64.0/18"
	d.add(to(long, en1))
	d.becomes("the longer route is deleted", func() bool { return !d.at(long).Dst.IsValid() })
	if err := d.k.other(route8(3, to(protected, en1))); err != nil {
		d.Fatal(err)
	}
	d.becomes("the tunnel's route is back", func() bool { return d.at(protected).Hop == hop })
	_ = d.k.other(route8(2, to(protected, hop)))
	d.becomes("the tunnel's route is back after its deletion", func() bool { return d.at(protected).Hop == hop })
}
