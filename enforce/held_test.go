package enforce_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// linesOf returns the lines of a table that begin so, in order.
func linesOf(sys *enforcetest.System, dst string) (out []string) {
	for line := range strings.Lines(sys.Text()) {
		if strings.HasPrefix(line, dst+" ") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// TestRivalReplacesNothing: what looks like a held route, and is by another gateway
// or of other legs, takes no held route's place; and does not come back itself.
func TestRivalReplacesNothing(t *testing.T) {
	p9 := via("172.31.5.0/24", "192.168.1.66", eth0)
	rival := via("172.31.5.0/24", "192.168.1.77", eth0)
	legs := p9.WithHops(p9.Hop, rival.Hop)
	six, six2 := via("fd31:0:5::/64", "fd01::66", eth0), via("fd31:0:5::/64", "fd01::77", eth0)
	for _, c := range []struct {
		name   string
		stood  []plan.Route
		comes  plan.Route
		leaves int // IPv6 announces a leg as the whole: more may be deleted
	}{
		{"another gateway", []plan.Route{p9}, rival, 1},
		{"IPv4: the first leg alone", []plan.Route{legs}, p9, 1},
		{"IPv6: one of the legs alone", []plan.Route{six2, six}, six2, 1},
		{"IPv6: another gateway", []plan.Route{six}, six2, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			sys := newHost(t)
			for _, r := range c.stood {
				add(t, sys, r)
			}
			before := sys.Text()
			e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
			removed := open(t, e, split).Removed
			add(t, sys, c.comes)
			eventually(t, "it is removed", func() bool { return status(t, e).Removed == removed+1 })
			if _, err := e.Close(t.Context(), "tun0"); err != nil {
				t.Fatal(err)
			}
			if after := sys.Text(); after != before {
				t.Errorf("after\n%s\nbefore\n%s", after, before)
			}
		})
	}
}

// TestRenewedKeepsItsPlace: the newer copy of a held route comes back where the older
// one stood among its equals, ahead of what came later, also when it was written down
// by the level path.
func TestRenewedKeepsItsPlace(t *testing.T) {
	for _, quiet := range []bool{false, true} {
		t.Run(fmt.Sprint("the edge misses it: ", quiet), func(t *testing.T) {
			sys := newHost(t)
			for _, gw := range []string{"192.168.1.61", "192.168.1.62", "192.168.1.63"} {
				add(t, sys, via("172.31.5.0/24", gw, eth0))
			}
			j := &enforcetest.Journal{}
			e, _ := run(t, sys, j, enforce.Options{})
			open(t, e, split)
			if quiet {
				sys.Lose(1)
			}
			add(t, sys, enforcetest.WithExtra(via("172.31.5.0/24", "192.168.1.62", eth0), "mtu 1400"))
			e.Wake("test")
			eventually(t, "the newer copy is held", func() bool {
				return slices.ContainsFunc(j.Entries(), func(e enforce.Entry) bool { return strings.HasSuffix(e.Route.Raw, "mtu 1400") }) && len(j.Entries()) == 3
			})
			if _, err := e.Close(t.Context(), "tun0"); err != nil {
				t.Fatal(err)
			}
			want := []string{"172.31.5.0/24 via 192.168.1.61 dev 2 proto 3", "172.31.5.0/24 via 192.168.1.62 dev 2 proto 3 mtu 1400", "172.31.5.0/24 via 192.168.1.63 dev 2 proto 3"}
			if got := linesOf(sys, "172.31.5.0/24"); !slices.Equal(got, want) {
				t.Errorf("restored\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// TestPlaceAmongEquals: what was held comes back ahead of what came while connected
// in its place, as it would stand without culvert.
func TestPlaceAmongEquals(t *testing.T) {
	const wifi = eth0 + 40
	sys := newHost(t)
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: wifi, Name: "wifi", HW: "02:00:00:00:00:42", Up: true})
		return tb.AddAddress(eth0, pfx("172.31.9.10/24"))
	})
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.AddAddress(wifi, pfx("172.31.9.11/24")) })
	eventually(t, "the second subnet route is held", func() bool { return len(status(t, e).Held) == 2 && len(linesOf(sys, "172.31.9.0/24")) == 0 })
	if _, err := e.Close(t.Context(), "tun0"); err != nil {
		t.Fatal(err)
	}
	got := linesOf(sys, "172.31.9.0/24")
	if len(got) != 2 || !strings.Contains(got[0], "dev 2 ") {
		t.Errorf("restored in the order\n%s", strings.Join(got, "\n"))
	}
}

// TestHeldBehindAStranger: the daemon died; a route came in the place of what is held.
// What was there first comes back first.
func TestHeldBehindAStranger(t *testing.T) {
	sys, j := newHost(t), &enforcetest.Journal{}
	add(t, sys, via("172.31.5.0/24", "192.168.1.61", eth0))
	e, stop := run(t, sys, j, enforce.Options{})
	open(t, e, split)
	sys.Halt()
	j.Halt()
	_ = stop()
	add(t, sys, via("172.31.5.0/24", "192.168.1.62", eth0))
	sys.Resume()
	j.Resume()
	if _, err := enforce.Recover(t.Context(), sys, j, enforce.Options{}); err != nil {
		t.Fatal(err)
	}
	got := linesOf(sys, "172.31.5.0/24")
	if len(got) != 2 || !strings.Contains(got[0], "192.168.1.61") {
		t.Errorf("restored in the order\n%s", strings.Join(got, "\n"))
	}
}

// advertised is an IPv6 prefix route as a router advertisement makes it.
func advertised(seconds uint32) plan.Route {
	r := via("fd31:0:77::/64", "", eth0)
	r.Metric, r.Protocol, r.Origin, r.Expires = 256, enforcetest.ProtoKernel, plan.Kernel, seconds
	return r
}

// TestLifetimesAreWrittenSeldom: each router advertisement renews the lifetime of a
// held route. A flood of them does not make a disk wait: the newest is in memory, and
// on disk within the minute.
func TestLifetimesAreWrittenSeldom(t *testing.T) {
	sys := newHost(t)
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.AddAddress(eth0, pfx("fd31:0:77::10/64")) })
	held := via("fd31:0:77::/64", "", eth0) // the fake kernel's own, without a lifetime
	held.Metric, held.Protocol, held.Origin = 256, enforcetest.ProtoKernel, plan.Kernel
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		_ = tb.DeleteExact(held)
		return tb.Add(advertised(1800), enforcetest.Append)
	})
	var writes atomic.Int64
	j := &enforcetest.Journal{Refuse: func(op string) error {
		if op == "hold" {
			writes.Add(1)
		}
		return nil
	}}
	e, _ := run(t, sys, j, enforce.Options{})
	open(t, e, split)
	entry := func() enforce.Entry {
		if all := j.Entries(); len(all) == 1 {
			return all[0]
		}
		t.Fatalf("held: %+v", j.Entries())
		return enforce.Entry{}
	}
	if got := entry().Route.Expires; got != 1800 || writes.Load() == 0 {
		t.Fatalf("a lifetime of %d s is written down, in %d writes", got, writes.Load())
	}
	flood := func(life uint32, n int) {
		for range n {
			do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.Add(advertised(life), enforcetest.Append) })
			eventually(t, "it is removed", func() bool { return len(linesOf(sys, "fd31:0:77::/64")) == 0 && sys.Pending() == 0 })
		}
		_, _ = e.Status(t.Context())
	}
	sys.SetUptime(time.Hour + 2*time.Second)
	was := writes.Load()
	flood(3600, 300)
	if n := writes.Load() - was; n > 1 {
		t.Errorf("%d writes for 300 advertisements within a minute", n)
	}
	sys.SetUptime(time.Hour + 10*time.Minute)
	e.Wake("a minute later")
	eventually(t, "the lifetime is written down", func() bool { return entry().Route.Expires == 3600 })
	// A crash does not cost the lifetime that was written down then.
	var back plan.Action
	sys.Refuse = func(a plan.Action) error {
		if a.Kind == plan.Restore {
			back = a
		}
		return nil
	}
	sys.SetUptime(time.Hour + 20*time.Minute)
	if _, err := e.Close(t.Context(), "tun0"); err != nil {
		t.Fatal(err)
	}
	if back.Route.Expires != 3600 || back.Age < 600 || back.Age > 1300 {
		t.Errorf("restored with %d s of life, %d s of them spent", back.Route.Expires, back.Age)
	}
}

// TestAgeOfHeldRoutes: a lifetime goes on while the route is held.
func TestAgeOfHeldRoutes(t *testing.T) {
	sys := newHost(t)
	r := via("fd31:0:5::/64", "fd01::66", eth0)
	r.Expires = 600
	add(t, sys, r)
	var back plan.Action
	sys.Refuse = func(a plan.Action) error {
		if a.Kind == plan.Restore {
			back = a
		}
		return nil
	}
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	sys.SetUptime(time.Hour + 200*time.Second)
	if _, err := e.Close(t.Context(), "tun0"); err != nil {
		t.Fatal(err)
	}
	if back.Age < 199 || back.Age > 260 { // the machine that runs this may be slow
		t.Errorf("held for 200 s, restored with %d s spent", back.Age)
	}
}

// TestNotBackIsTold: a route of two legs cannot come back while the interface of one
// is down. It is not called restored, and comes back once it can.
func TestNotBackIsTold(t *testing.T) {
	const wifi = eth0 + 40
	sys := newHost(t)
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: wifi, Name: "wifi", HW: "02:00:00:00:00:42", Up: true})
		return tb.AddAddress(wifi, pfx("192.168.7.10/24"))
	})
	both := via("172.31.5.0/24", "192.168.1.66", eth0)
	both = both.WithHops(both.Hop, via("0.0.0.0/0", "192.168.7.1", wifi).Hop)
	add(t, sys, both)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.SetUp(wifi, false) })
	st, err := e.Close(t.Context(), "tun0")
	if err != nil || st.State != enforce.Restoring || !strings.Contains(st.Error, "172.31.5.0/24") || !strings.Contains(st.Error, "interface wifi is down") {
		t.Errorf("closed as %s, error %q, %v", st.State, st.Error, err)
	}
	waiting := func() []enforce.HeldRoute {
		all, err := e.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return all.Waiting
	}
	if got := waiting(); len(got) != 1 || got[0].Why != "interface wifi is down" {
		t.Errorf("waiting: %+v", got)
	}
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.SetUp(wifi, true) })
	eventually(t, "it is back", func() bool { return len(linesOf(sys, "172.31.5.0/24")) == 1 && len(waiting()) == 0 })
}

// TestLifetimeAnnouncedLater: the kernel announces routes of router advertisements
// before they have their lifetimes. They are not taken for endless ones, nor is the
// lifetime that they had taken for spent.
func TestLifetimeAnnouncedLater(t *testing.T) {
	sys := newHost(t)
	r := via("fd31:0:5::/64", "fe80::1", eth0)
	r.Expires, r.Origin, r.Protocol = 600, plan.Leased, 9
	add(t, sys, r)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	sys.SetUptime(time.Hour + 500*time.Second)
	open(t, e, split) // the clock is read with the interfaces
	bare := r
	bare.Expires = 0
	n := status(t, e).Removed
	add(t, sys, bare)
	eventually(t, "it is removed", func() bool { return status(t, e).Removed > n })
	sys.SetUptime(time.Hour + 900*time.Second)
	var back plan.Action
	sys.Refuse = func(a plan.Action) error {
		if a.Kind == plan.Restore {
			back = a
		}
		return nil
	}
	if _, err := e.Close(t.Context(), "tun0"); err != nil {
		t.Fatal(err)
	}
	if back.Route.Expires != 600 || back.Age < 399 || back.Age > 500 {
		t.Errorf("restored with %d s of life, %d s of them spent", back.Route.Expires, back.Age)
	}
}

// TestHeldNumbers: each held route has a number of its own, and none is 0: by it the
// journal crosses out.
func TestHeldNumbers(t *testing.T) {
	sys, j := newHost(t), &enforcetest.Journal{}
	for _, dst := range []string{"172.31.5.0/24", "172.31.6.0/24"} {
		add(t, sys, via(dst, "192.168.1.66", eth0))
	}
	e, _ := run(t, sys, j, enforce.Options{RestoreAll: true})
	open(t, e, split)
	for i, dst := range []string{"172.31.7.0/24", "172.31.8.0/24"} {
		add(t, sys, via(dst, "192.168.1.66", eth0))
		eventually(t, "it is held", func() bool { return len(j.Entries()) == i+3 })
	}
	seen := map[uint64]bool{0: true}
	for _, h := range j.Entries() {
		if seen[h.ID] {
			t.Errorf("the number %d is given twice, or says nothing: %+v", h.ID, j.Entries())
		}
		seen[h.ID] = true
	}
}

// TestRenewedBelongsToItsNetwork: the newer copy of a held route is forgotten with the
// network that the older one belonged to.
func TestRenewedBelongsToItsNetwork(t *testing.T) {
	sys := newHost(t)
	r := via("172.31.5.0/24", "192.168.1.66", eth0)
	add(t, sys, r)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	removed := open(t, e, split).Removed
	add(t, sys, enforcetest.WithExtra(r, "mtu 1400"))
	eventually(t, "the newer copy is held", func() bool {
		st := status(t, e)
		return st.Removed == removed+1 && len(st.Held) == 1
	})
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.RemoveAddress(eth0, pfx("192.168.1.10/24")) })
	eventually(t, "it is forgotten", func() bool { return len(status(t, e).Held) == 0 })
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.AddAddress(eth0, pfx("192.168.1.10/24")) })
	if _, err := e.Close(t.Context(), "tun0"); err != nil {
		t.Fatal(err)
	}
	if lines := linesOf(sys, "172.31.5.0/24"); len(lines) > 0 {
		t.Errorf("came back: %s", lines)
	}
}
