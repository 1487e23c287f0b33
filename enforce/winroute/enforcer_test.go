package winroute

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

func (d desk) becomes(what string, holds func() bool) {
	d.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			d.Fatalf("never happened: %s\n%s", what, d.text())
		}
	}
}

// TestTunnels enforces what OpenVPN and WireGuard leave in the table of a
// Windows machine: connect, attacks, disconnect, and the table is what it was.
func TestTunnels(t *testing.T) {
	server := "203.0.113.5"
	for name, c := range map[string]struct {
		hop     plan.Hop
		protect []string
	}{
		"OpenVPN redirect-gateway def1": {peer, []string{"0.0.0.0/1", "128.0.0.0/1"}},
		"WireGuard":                     {tunnel, []string{"0.0.0.0/0"}},
		"split tunnel":                  {peer, []string{"10.0.0.0/8", "172.31.0.0/16"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.add(to("0.0.0.0/0", ethernet), 0)
			d.add(to("172.31.1.0/24", ethernet), 256)
			before := d.text()
			e, stop := d.enforcer()
			d.add(to(server+"/32", ethernet), 0)
			for _, p := range c.protect {
				d.add(to(p, c.hop), 0)
			}
			d.open(e, c.protect, server)
			d.attack(c.protect[len(c.protect)-1], c.hop)
			if _, err := e.Close(t.Context(), "OpenVPN Wintun"); err != nil {
				t.Fatal(err)
			}
			stop()
			_ = d.k.delete(d.k.fakeRow(to(server+"/32", ethernet), 3))
			for _, p := range c.protect {
				_ = d.k.delete(d.k.fakeRow(to(p, c.hop), 3))
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
	s := enforce.Session{Tunnel: "OpenVPN Wintun", Servers: []enforce.Server{{Addr: netip.MustParseAddrPort(server + ":1194"), Proto: "udp"}}}
	for _, p := range protect {
		s.Protect = append(s.Protect, netip.MustParsePrefix(p))
	}
	st, err := e.Open(d.Context(), s)
	if err != nil || st.State != enforce.Enforcing {
		d.Fatalf("open: %+v, %v", st, err)
	}
	if got := d.at("172.31.1.0/24", ethernet); got.Dst.IsValid() {
		d.Errorf("a conflicting route stands: %s", enforcetest.Text(got))
	}
}

// attack adds a longer route, deletes the tunnel's own, and has one of equal
// length win by the sum of the metrics.
func (d desk) attack(protected string, hop plan.Hop) {
	d.Helper()
	d.add(to("172.31.64.0/18", wlan), 0)
	d.becomes("the longer route is deleted", func() bool { return !d.at("172.31.64.0/18", wlan).Dst.IsValid() })
	_ = d.k.delete(d.k.fakeRow(to(protected, hop), 3))
	d.becomes("the tunnel's route is back", func() bool { return d.at(protected, hop).Dst.IsValid() })

	d.add(to(protected, wlan), 1) // 36 beside the tunnel's 5: it never wins
	d.becomes("a route that loses was seen", func() bool { return d.at(protected, wlan).Dst.IsValid() })
	d.k.setMetric(9, 2) // 3: now it does
	d.becomes("the winner by the sum is deleted", func() bool { return !d.at(protected, wlan).Dst.IsValid() })
	d.k.setMetric(9, 35)
}
