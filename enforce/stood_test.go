package enforce_test

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// TestServerChanges: the VPN reconnects to another of its servers. A host route to the
// first one that stood before conflicts from then on, and comes back.
func TestServerChanges(t *testing.T) {
	sys := newHost(t)
	add(t, sys, via("198.51.100.7/32", "192.168.1.1", eth0))
	before := sys.Text()
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, full)
	next := full
	next.Servers = []enforce.Server{{Addr: netip.MustParseAddrPort("198.51.100.8:1194"), Proto: "udp"}}
	open(t, e, next)
	if got := leavesBy(sys, "198.51.100.7"); got != tun0 {
		t.Errorf("the old server is reached by %d:\n%s", got, sys.Text())
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	sameAfter(t, "the end", before, sys.Text())
}

// TestPinholeGoes: a host route to the gateway that stood before is spared as long as
// the gateway leads to the server. It conflicts once another network does, is removed,
// and comes back.
func TestPinholeGoes(t *testing.T) {
	const wifi = 3
	host := via("192.168.1.1/32", "", eth0)
	sys := newHost(t)
	add(t, sys, host)
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: wifi, Name: "wifi", HW: "02:00:00:00:00:03", Up: true})
		second := via("0.0.0.0/0", "192.168.2.1", wifi)
		second.Metric = 600
		return errors.Join(tb.AddAddress(wifi, pfx("192.168.2.10/24")), tb.Add(second, enforcetest.Add))
	})
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, full)
	if got := leavesBy(sys, "192.168.1.1"); got != eth0 {
		t.Fatalf("the gateway is reached by %d:\n%s", got, sys.Text())
	}
	first := via("0.0.0.0/0", "192.168.1.1", eth0)
	before := sys.Text()
	do(t, sys, 4711, func(tb *enforcetest.Table) error { return tb.DeleteExact(first) })
	eventually(t, "the other network leads to the server", func() bool {
		return leavesBy(sys, "192.168.2.1") == wifi && leavesBy(sys, "192.168.1.1") == tun0
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	if before == sys.Text() || leavesBy(sys, "192.168.1.1") != eth0 || !strings.Contains(sys.Text(), "192.168.1.1/32 dev 2") {
		t.Errorf("afterwards\n%s", sys.Text())
	}
}

// TestNewsAfterAnotherSession: an attack's route was removed while its session was open.
// The news of it comes when that has left and another is open on the tunnel, or when it
// protects something else: the route does not come back. One that the old policy judged
// after the change was wished for does.
func TestNewsAfterAnotherSession(t *testing.T) {
	attack := via("172.31.1.0/24", "192.168.1.66", eth0)
	spared := split
	spared.Exclude = []netip.Prefix{pfx("172.31.1.0/24")}
	for name, c := range map[string]struct{ closed, removed, late, back bool }{
		"another session":                      {closed: true, removed: true},
		"another session, the loop removed it": {closed: true},
		"another policy":                       {removed: true},
		"another policy, nobody removed it":    {},
		"another policy, judged too late":      {removed: true, late: true, back: true},
		"nobody removed it, judged too late":   {late: true},
	} {
		t.Run(name, func(t *testing.T) {
			sys := &lateSystem{System: newHost(t)}
			e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
			open(t, e, split)
			ev := enforce.Event{Change: enforce.Added, Route: attack, Answer: sys.edge(enforce.Added, &attack), Seen: time.Now()}
			if ev.Removed, ev.Idle = c.removed, !c.removed; !ev.Answer.Delete {
				t.Fatalf("the edge answered %+v", ev.Answer)
			}
			if c.closed {
				if _, err := e.Close(t.Context(), "tun0"); err != nil {
					t.Fatal(err)
				}
			}
			open(t, e, spared)
			if c.late {
				ev.Seen = time.Now()
			}
			sys.sink.Tell(ev)
			if err := stop(); err != nil {
				t.Error(err)
			}
			if got := strings.Contains(sys.Text(), attack.Dst.String()); got != c.back {
				t.Errorf("the route is there: %t\n%s", got, sys.Text())
			}
		})
	}
}

// TestTunnelOnANewIndex: the VPN makes its interface anew and adds its routes before
// anybody has looked at it. They are the VPN's own, and stay as it made them.
func TestTunnelOnANewIndex(t *testing.T) {
	const again = 9
	rearm := split
	rearm.Rearm = true
	for name, c := range map[string]struct {
		loss enforce.Loss
		s    enforce.Session
		seen bool
	}{
		"guard": {enforce.LossGuard, split, true}, "guard, nobody saw it gone": {enforce.LossGuard, split, false},
		"rearm": {enforce.LossRestore, rearm, true}, "rearm, nobody saw it gone": {enforce.LossRestore, rearm, false},
	} {
		t.Run(name, func(t *testing.T) {
			sys := &lateSystem{System: newHost(t)}
			e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{OnLoss: c.loss})
			open(t, e, c.s)
			do(t, sys.System, 0, func(tb *enforcetest.Table) error { return tb.DeleteLink(tun0) })
			if c.seen {
				e.Wake("test")
				eventually(t, "the tunnel is missed", func() bool { return status(t, e).State != enforce.Enforcing })
			}
			own := via("172.31.0.0/16", "10.8.0.1", again)
			longer := via("172.31.5.0/24", "10.8.0.1", again)
			do(t, sys.System, 0, func(tb *enforcetest.Table) error {
				tb.AddLink(plan.Link{Index: again, Name: "tun0", Up: true})
				return errors.Join(tb.AddAddress(again, pfx("10.8.0.2/24")), tb.Add(own, enforcetest.Add),
					tb.Add(longer, enforcetest.Add), tb.Add(via("fd31::/32", "", again), enforcetest.Add))
			})
			before := sys.Text()
			for _, r := range []plan.Route{own, longer} {
				ev := enforce.Event{Change: enforce.Added, Route: r, Answer: sys.edge(enforce.Added, &r), Seen: time.Now()}
				if ev.Answer.Delete {
					t.Errorf("%v is deleted", r.Dst)
				}
				ev.Done = time.Now()
				sys.sink.Tell(ev)
			}
			e.Wake("test")
			eventually(t, "the session enforces", func() bool { return status(t, e).State == enforce.Enforcing })
			if err := stop(); err != nil {
				t.Error(err)
			}
			sameAfter(t, "the end", before, sys.Text())
		})
	}
}

// TestConflictByANewInterface: one that is not the tunnel's is removed by whoever takes
// in the news, with no look at the table. It came while connected and is not held.
func TestConflictByANewInterface(t *testing.T) {
	const fresh = 9
	sys := &late{unreadable: &unreadable{backlog: &backlog{System: newHost(t)}}}
	j := &enforcetest.Journal{}
	e, stop := run(t, sys, j, enforce.Options{})
	open(t, e, split)
	sys.set(true)
	before := sys.Text()
	attack := plan.Route{Dst: pfx("172.31.1.0/24"), Hop: plan.Hop{Link: fresh}, Protocol: 16}
	do(t, sys.System, 4711, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: fresh, Name: "evil0", Up: true})
		return tb.Add(attack, enforcetest.Add)
	})
	sys.sink.Tell(enforce.Event{Change: enforce.Added, Route: attack, Answer: sys.edge(enforce.Added, &attack), Seen: time.Now()})
	eventually(t, "it is removed", func() bool { return sys.Text() == before })
	if got := j.Entries(); len(got) > 0 {
		t.Errorf("held: %+v", got)
	}
	sys.set(false)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestBetterTunnelRoute: the VPN adds a route with a lower metric beside the one that is
// known. Soon what has a metric between the two is let be.
func TestBetterTunnelRoute(t *testing.T) {
	sys := newHost(t)
	worse, better := via("172.31.0.0/16", "10.8.0.1", tun0), via("172.31.0.0/16", "10.8.0.1", tun0)
	worse.Metric = 200
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		return errors.Join(tb.DeleteExact(better), tb.Add(worse, enforcetest.Add))
	})
	late := &lateSystem{System: sys}
	e, stop := run(t, late, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	between := via("172.31.0.0/16", "192.168.1.66", eth0)
	between.Metric = 100
	if a := late.edge(enforce.Added, &between); !a.Delete {
		t.Fatalf("of what beats the tunnel's route the edge says %+v", a)
	}
	do(t, sys, 4711, func(tb *enforcetest.Table) error { return tb.Add(better, enforcetest.Append) })
	if a := late.edge(enforce.Added, &better); a.Tell {
		late.sink.Tell(enforce.Event{Change: enforce.Added, Route: better, Answer: a, Seen: time.Now()})
	}
	eventually(t, "it is let be", func() bool { return !late.edge(enforce.Added, &between).Delete })
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestAddressGoesAtTheEnd: as the daemon ends, an address goes whose route is just
// being given back. Nothing is owed then.
func TestAddressGoesAtTheEnd(t *testing.T) {
	sys, j := newHost(t), &enforcetest.Journal{}
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.AddAddress(eth0, pfx("172.31.9.2/24")) })
	e, stop := run(t, sys, j, enforce.Options{})
	open(t, e, split)
	if got := status(t, e).Held; len(got) != 1 {
		t.Fatalf("held: %v", got)
	}
	var gone atomic.Bool
	sys.Refuse = func(a plan.Action) error { // before the lock is taken
		if a.Kind == plan.Restore && gone.CompareAndSwap(false, true) {
			do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.RemoveAddress(eth0, pfx("172.31.9.2/24")) })
		}
		return nil
	}
	if err := stop(); err != nil || !gone.Load() || len(j.Entries()) > 0 || strings.Contains(sys.Text(), "172.31.9.0/24") {
		t.Errorf("%v, gone %v, entries %+v, and\n%s", err, gone.Load(), j.Entries(), sys.Text())
	}
}
