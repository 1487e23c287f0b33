package enforce_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

const (
	eth0 uint32 = 2
	tun0 uint32 = 5
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func via(dst, gw string, link uint32) plan.Route {
	r := plan.Route{Dst: pfx(dst), Hop: plan.Hop{Link: link}, Protocol: enforcetest.ProtoBoot}
	if gw != "" {
		r.Hop.Via = netip.MustParseAddr(gw)
	}
	if r.Dst.Addr().Is6() {
		r.Metric = 1024
	}
	return r
}

// newHost is a host on a LAN with a default route, with a VPN's tunnel up and
// its routes installed.
func newHost(t *testing.T) *enforcetest.System {
	t.Helper()
	table := &enforcetest.Table{}
	table.AddLink(plan.Link{Index: 1, Name: "lo", Up: true})
	table.AddLink(plan.Link{Index: eth0, Name: "eth0", HW: "02:00:00:00:00:02", Up: true})
	sys := enforcetest.NewSystem(table)
	sys.SetUptime(time.Hour)
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		return errors.Join(
			tb.AddAddress(eth0, pfx("192.168.1.10/24")), tb.AddAddress(eth0, pfx("fd01::10/64")),
			tb.Add(via("0.0.0.0/0", "192.168.1.1", eth0), enforcetest.Add),
			tb.Add(via("::/0", "fd01::1", eth0), enforcetest.Add),
		)
	})
	addTunnel(t, sys)
	return sys
}

func addTunnel(t *testing.T, sys *enforcetest.System) {
	t.Helper()
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: tun0, Name: "tun0", Up: true})
		return errors.Join(
			tb.AddAddress(tun0, pfx("10.8.0.2/24")), tb.AddAddress(tun0, pfx("fd08::2/64")),
			tb.Add(via("172.31.0.0/16", "10.8.0.1", tun0), enforcetest.Add),
			tb.Add(via("fd31::/32", "", tun0), enforcetest.Add),
		)
	})
}

func do(t *testing.T, sys *enforcetest.System, port uint32, f func(*enforcetest.Table) error) {
	t.Helper()
	if err := sys.Do(port, f); err != nil {
		t.Fatal(err)
	}
}

func add(t *testing.T, sys *enforcetest.System, r plan.Route) {
	t.Helper()
	do(t, sys, 4711, func(tb *enforcetest.Table) error { return tb.Add(r, enforcetest.Append) })
}

var split = enforce.Session{
	Tunnel:  "tun0",
	Protect: []netip.Prefix{pfx("172.31.0.0/16"), pfx("fd31::/32")},
	Servers: []enforce.Server{{Addr: netip.MustParseAddrPort("198.51.100.7:1194"), Proto: "udp"}},
}

var full = enforce.Session{
	Tunnel:  "tun0",
	Protect: []netip.Prefix{pfx("0.0.0.0/1"), pfx("128.0.0.0/1"), pfx("::/1"), pfx("8000::/1")},
	Servers: split.Servers,
}

// run starts an Enforcer and returns it with a way to end it.
func run(t testing.TB, sys enforce.System, j enforce.Journal, opt enforce.Options) (*enforce.Enforcer, func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e := enforce.New(sys, j, opt)
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	stop := func() error { cancel(); return <-ended }
	t.Cleanup(cancel)
	select {
	case <-e.Ready():
	case err := <-ended:
		ended <- err
	}
	return e, stop
}

func open(t testing.TB, e *enforce.Enforcer, s enforce.Session) enforce.SessionStatus {
	t.Helper()
	st, err := e.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never happened: %s", what)
}

func status(t *testing.T, e *enforce.Enforcer) enforce.SessionStatus {
	t.Helper()
	st, err := e.Status(t.Context())
	if err != nil || len(st.Sessions) != 1 {
		t.Fatalf("status: %+v, %v", st, err)
	}
	return st.Sessions[0]
}

// leavesBy returns the interface that an address is sent out by.
func leavesBy(sys *enforcetest.System, addr string) uint32 {
	r, ok := sys.Lookup(netip.MustParseAddr(addr), 0, netip.Addr{})
	if !ok {
		return 0
	}
	return r.Hop.Link
}

func TestConnectAttackDisconnect(t *testing.T) {
	sys := newHost(t)
	add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
	add(t, sys, via("fd31:0:5::/48", "fd01::66", eth0))
	before := sys.Text()
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	st := open(t, e, split)
	if st.State != enforce.Enforcing || st.Removed != 2 || len(st.Held) != 2 {
		t.Fatalf("after opening: %+v", st)
	}
	attack := via("172.31.1.0/24", "192.168.1.66", eth0)
	add(t, sys, attack)
	eventually(t, "the attack's route is gone", func() bool { return leavesBy(sys, "172.31.1.10") == tun0 })
	eventually(t, "the attack is counted", func() bool { return status(t, e).Removed == 3 })
	if st := status(t, e); st.State != enforce.Enforcing || len(st.Held) != 2 {
		t.Errorf("after the attack: %+v", st)
	}
	st, err := e.Close(t.Context(), "tun0")
	if err != nil || st.State != enforce.Restored || st.Restored != 2 {
		t.Errorf("closed: %+v, %v", st, err)
	}
	if after := sys.Text(); after != before {
		t.Errorf("after disconnecting:\n%s\nbefore:\n%s", after, before)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestIncidentTells(t *testing.T) {
	sys := newHost(t)
	sys.Name(4711, "dhclient")
	seen := make(chan enforce.Incident, 8)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{Observe: func(in enforce.Incident) { seen <- in }})
	open(t, e, split)
	add(t, sys, via("172.31.1.0/24", "192.168.1.66", eth0))
	in := <-seen
	if in.What != "removed" || in.Tunnel != "tun0" || in.Path != "edge" || in.Exposed < 0 ||
		in.Reason != "longer than 172.31.0.0/16, leaves by eth0" ||
		in.By.Process != "dhclient" || in.By.Port != 4711 || in.Gone.Before(in.Seen) {
		t.Errorf("incident: %+v", in)
	}
}

func TestDeletedTunnelRouteComesBack(t *testing.T) {
	sys := newHost(t)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	before := sys.Text()
	for _, r := range []plan.Route{via("172.31.0.0/16", "10.8.0.1", tun0), via("fd31::/32", "", tun0)} {
		do(t, sys, 1, func(tb *enforcetest.Table) error { return tb.Delete(r) })
	}
	eventually(t, "both are back", func() bool { return sys.Text() == before })
	eventually(t, "both are counted", func() bool { return status(t, e).Readded == 2 })
}

func TestReplacedTunnelRouteComesBack(t *testing.T) {
	sys := newHost(t)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	before := sys.Text()
	do(t, sys, 1, func(tb *enforcetest.Table) error {
		return tb.Add(via("172.31.0.0/16", "192.168.1.66", eth0), enforcetest.Replace)
	})
	eventually(t, "the tunnel's route stands alone", func() bool { return sys.Text() == before })
}

func TestFullTunnelKeepsItsTransport(t *testing.T) {
	sys := newHost(t)
	before := sys.Text()
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	if st := open(t, e, full); st.State != enforce.Enforcing {
		t.Fatalf("%+v", st)
	}
	for addr, want := range map[string]uint32{
		"192.168.1.1": eth0, "198.51.100.7": eth0, // the gateway and the server
		"192.168.1.20": tun0, "9.9.9.9": tun0, "2620::1": tun0, "fd01::20": tun0,
	} {
		if got := leavesBy(sys, addr); got != want {
			t.Errorf("%s leaves by %d, want %d", addr, got, want)
		}
	}
	do(t, sys, 1, func(tb *enforcetest.Table) error {
		for r := range tb.Routes() {
			if r.Dst == pfx("198.51.100.7/32") {
				return tb.DeleteExact(r)
			}
		}
		return errors.New("the server has no host route")
	})
	eventually(t, "the server's host route is back", func() bool { return leavesBy(sys, "198.51.100.7") == eth0 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	if after := sys.Text(); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
}

func TestLevelFindsWhatEventsMissed(t *testing.T) {
	sys := newHost(t)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	sys.Lose(1)
	add(t, sys, via("172.31.1.0/24", "192.168.1.66", eth0))
	sys.Overrun(1)
	add(t, sys, via("172.31.2.0/24", "192.168.1.66", eth0))
	sys.Interrupt(2)
	eventually(t, "both are gone", func() bool {
		return leavesBy(sys, "172.31.1.1") == tun0 && leavesBy(sys, "172.31.2.1") == tun0
	})
	if held := status(t, e).Held; len(held) != 0 {
		t.Errorf("routes of an attack are held: %v", held)
	}
}

func TestConnectedRouteComesBack(t *testing.T) {
	sys := newHost(t)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, full)
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.AddAddress(eth0, pfx("192.168.7.10/24")) })
	eventually(t, "the new network's route is out", func() bool { return leavesBy(sys, "192.168.7.20") == tun0 })
	if _, err := e.Close(t.Context(), "tun0"); err != nil {
		t.Fatal(err)
	}
	if got := leavesBy(sys, "192.168.7.20"); got != eth0 {
		t.Errorf("the new network leaves by %d after disconnecting", got)
	}
}

func TestRestoreAll(t *testing.T) {
	for _, all := range []bool{false, true} {
		sys := newHost(t)
		e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{RestoreAll: all})
		open(t, e, split)
		add(t, sys, via("172.31.1.0/24", "192.168.1.66", eth0))
		eventually(t, "gone", func() bool { return leavesBy(sys, "172.31.1.1") == tun0 })
		if _, err := e.Close(t.Context(), "tun0"); err != nil {
			t.Fatal(err)
		}
		if back := strings.Contains(sys.Text(), "172.31.1.0/24"); back != all {
			t.Errorf("restore all %v: the route is back: %v", all, back)
		}
	}
}

func TestAuditChangesNothing(t *testing.T) {
	sys := newHost(t)
	add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
	before := sys.Text()
	seen := make(chan enforce.Incident, 8)
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{Audit: true, Observe: func(in enforce.Incident) { seen <- in }})
	if st := open(t, e, split); st.State != enforce.Auditing {
		t.Errorf("%+v", st)
	}
	if in := <-seen; in.What != "reported" {
		t.Errorf("%+v", in)
	}
	if err := stop(); err != nil || sys.Text() != before {
		t.Errorf("%v; table:\n%s", err, sys.Text())
	}
}

func TestTunnelLoss(t *testing.T) {
	for _, rearm := range []bool{false, true} {
		sys := newHost(t)
		add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
		e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
		s := split
		s.Rearm = rearm
		open(t, e, s)
		do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.DeleteLink(tun0) })
		eventually(t, "the held route is back", func() bool { return leavesBy(sys, "172.31.5.1") == eth0 })
		if !rearm {
			continue
		}
		eventually(t, "the session waits", func() bool { return status(t, e).State == enforce.Connecting })
		addTunnel(t, sys)
		eventually(t, "it enforces again", func() bool { return status(t, e).State == enforce.Enforcing })
		if got := leavesBy(sys, "172.31.5.1"); got != tun0 {
			t.Errorf("leaves by %d", got)
		}
	}
}

func TestGuardKeepsConflictsOut(t *testing.T) {
	sys := newHost(t)
	add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{OnLoss: enforce.LossGuard})
	open(t, e, split)
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.DeleteLink(tun0) })
	eventually(t, "reconnecting", func() bool { return status(t, e).State == enforce.Reconnecting })
	add(t, sys, via("172.31.6.0/24", "192.168.1.66", eth0))
	eventually(t, "an attack is still answered", func() bool { return !strings.Contains(sys.Text(), "172.31.6.0/24") })
	if strings.Contains(sys.Text(), "172.31.5.0/24") {
		t.Error("the held route came back under guard")
	}
}

func TestBadInputChangesNothing(t *testing.T) {
	sys := newHost(t)
	before := sys.Text()
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	bad := map[string]enforce.Session{
		"no such interface":   {Tunnel: "tun9", Protect: split.Protect},
		"nothing to protect":  {Tunnel: "tun0"},
		"both protected":      {Tunnel: "tun0", Protect: split.Protect, Exclude: split.Protect[:1]},
		"never touched":       {Tunnel: "tun0", Protect: []netip.Prefix{pfx("169.254.7.0/24")}},
		"host bits set":       {Tunnel: "tun0", Protect: []netip.Prefix{pfx("10.1.2.3/16")}},
		"docker0, br-* or":    {Tunnel: "tun0", Protect: split.Protect, ExcludeInterfaces: []string{"br-["}},
		"not a server":        {Tunnel: "tun0", Protect: split.Protect, Servers: []enforce.Server{{Proto: "udp"}}},
		"is not protected":    {Tunnel: "tun0", Protect: split.Protect, OtherTable: []netip.Prefix{pfx("0.0.0.0/0")}},
		"no interface was na": {Protect: split.Protect},
	}
	for want, s := range bad {
		_, err := e.Open(t.Context(), s)
		var input *enforce.InputError
		if !errors.As(err, &input) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	open(t, e, split)
	other := enforce.Session{Tunnel: "eth0", Protect: split.Protect[:1]}
	if _, err := e.Open(t.Context(), other); err == nil || !strings.Contains(err.Error(), "two sessions") {
		t.Errorf("overlap: %v", err)
	}
	if _, err := e.Close(t.Context(), "tun7"); !errors.Is(err, enforce.ErrNoSession) {
		t.Errorf("close: %v", err)
	}
	if sys.Text() != before {
		t.Errorf("table:\n%s", sys.Text())
	}
}

func TestFullDiskDeletesNothingThatMustComeBack(t *testing.T) {
	sys := newHost(t)
	add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
	j := &enforcetest.Journal{Refuse: func(op string) error {
		if op == "hold" {
			return syscall.ENOSPC
		}
		return nil
	}}
	e, _ := run(t, sys, j, enforce.Options{})
	st := open(t, e, split)
	if st.State != enforce.Failed || !strings.Contains(st.Error, "could not be written down") {
		t.Errorf("%+v", st)
	}
	if got := leavesBy(sys, "172.31.5.1"); got != eth0 {
		t.Errorf("a route that could not be given back was deleted")
	}
	add(t, sys, via("172.31.6.0/24", "192.168.1.66", eth0))
	eventually(t, "what need not come back is still removed", func() bool { return leavesBy(sys, "172.31.6.1") == tun0 })
}

func TestRefusedDeleteFails(t *testing.T) {
	sys := newHost(t)
	add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
	sys.Refuse = func(a plan.Action) error {
		if a.Kind == plan.Remove {
			return syscall.EPERM
		}
		return nil
	}
	j := &enforcetest.Journal{}
	e, stop := run(t, sys, j, enforce.Options{})
	if st := open(t, e, split); st.State != enforce.Failed || st.Removed != 0 || len(st.Held) != 0 {
		t.Errorf("%+v", st)
	}
	if err := stop(); err != nil || len(j.Entries()) != 0 {
		t.Errorf("%v, %v", err, j.Entries())
	}
}

func TestContestIsCounted(t *testing.T) {
	sys := newHost(t)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	attack := via("172.31.1.0/24", "192.168.1.66", eth0)
	for range 10 {
		add(t, sys, attack)
		eventually(t, "gone", func() bool { return leavesBy(sys, "172.31.1.1") == tun0 })
	}
	eventually(t, "ten times", func() bool {
		c := status(t, e).Contested
		return len(c) == 1 && c[0].Times == 10
	})
}

// TestCrashAnywhere kills the process before and after every single step of a
// session's life, starts it anew, and wants the table as it was.
func TestCrashAnywhere(t *testing.T) {
	for _, s := range []enforce.Session{split, full} {
		for n := 0; ; n++ {
			if !crashAt(t, s, n/2, n%2 == 1) {
				break
			}
		}
	}
}

// crashAt lets the step-th step be the last before the process dies, and
// reports whether there was one.
func crashAt(t *testing.T, s enforce.Session, step int, after bool) bool {
	sys := newHost(t)
	add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
	add(t, sys, via("172.31.6.0/24", "192.168.1.66", eth0))
	add(t, sys, via("fd31:0:5::/48", "fd01::66", eth0))
	before := sys.Text()
	j := &enforcetest.Journal{}
	crashed := make(chan struct{})
	count, dead := 0, false
	hook := func(p enforcetest.Point) {
		if p.Op == "load" || p.After != after || dead {
			return
		}
		if count == step {
			dead = true
			sys.Halt()
			j.Halt()
			close(crashed)
		}
		count++
	}
	sys.Hook, j.Hook = hook, hook
	ctx, cancel := context.WithCancel(context.Background())
	e := enforce.New(sys, j, enforce.Options{})
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	<-e.Ready()
	if _, err := e.Open(t.Context(), s); err == nil {
		e.Close(t.Context(), "tun0")
	}
	cancel()
	<-ended
	select {
	case <-crashed:
	default:
		return false
	}
	sys.Resume()
	j.Resume()
	name := fmt.Sprintf("%s step %d after %v", s.Protect[0], step, after)
	if _, err := enforce.Recover(t.Context(), sys, j, enforce.Options{}); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if sys.Text() != before {
		t.Errorf("%s:\n%s\nbefore:\n%s", name, sys.Text(), before)
	}
	if left := j.Entries(); len(left) != 0 {
		t.Errorf("%s: the journal keeps %v", name, left)
	}
	return true
}

// TestSessionsOutliveTheProcess restarts the enforcer under a standing tunnel:
// nobody runs the VPN's hooks again.
func TestSessionsOutliveTheProcess(t *testing.T) {
	sys := newHost(t)
	add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
	before := sys.Text()
	dir := t.TempDir()
	life := func(f func(e *enforce.Enforcer)) {
		j, err := enforce.OpenJournal(dir, enforce.Binding{Boot: "b", Namespace: "net:[1]"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		e, stop := run(t, sys, j, enforce.Options{Sessions: j})
		f(e)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if sys.Text() != before {
			t.Errorf("after stopping:\n%s", sys.Text())
		}
	}
	life(func(e *enforce.Enforcer) { open(t, e, split) })
	life(func(e *enforce.Enforcer) {
		if st := status(t, e); st.State != enforce.Enforcing || len(st.Held) != 1 {
			t.Errorf("after a restart: %+v", st)
		}
		if _, err := e.Close(t.Context(), "tun0"); err != nil {
			t.Error(err)
		}
	})
	life(func(e *enforce.Enforcer) {
		if st, err := e.Status(t.Context()); err != nil || len(st.Sessions) != 0 {
			t.Errorf("a closed session came back: %+v, %v", st, err)
		}
		open(t, e, split)
	})
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.DeleteLink(tun0) })
	addTunnel(t, sys)
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		if err := tb.DeleteLink(tun0); err != nil {
			return err
		}
		tb.AddLink(plan.Link{Index: 9, Name: "tun0", Up: true})
		return nil
	})
	before = sys.Text()
	life(func(e *enforce.Enforcer) {
		st, err := e.Status(t.Context())
		if err != nil || len(st.Sessions) != 0 {
			t.Errorf("another tunnel got the session of the last: %+v, %v", st, err)
		}
		if len(st.Incidents) != 1 || st.Incidents[0].What != "ended" || st.Incidents[0].Tunnel != "tun0" || !strings.Contains(st.Incidents[0].Reason, "another interface") {
			t.Errorf("that the session ended is not told: %+v", st.Incidents)
		}
	})
}

// lateSystem is a System whose events the test tells itself.
type lateSystem struct {
	*enforcetest.System
	edge enforce.Edge
	sink *enforce.Sink
}

func (s *lateSystem) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	s.edge, s.sink = edge, sink
	ready()
	<-ctx.Done()
	return nil
}

// TestDeletedAsTheSessionEnds: an attack's route that was deleted while the
// session was open does not come back because the news of it came after the
// end. One that was judged by the old policy only after the end does: nobody
// would have deleted it by the new one.
func TestDeletedAsTheSessionEnds(t *testing.T) {
	for name, after := range map[string]bool{"seen before the end": false, "seen after the end": true} {
		t.Run(name, func(t *testing.T) {
			sys := &lateSystem{System: newHost(t)}
			e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
			open(t, e, split)
			attack := via("172.31.1.0/24", "192.168.1.66", eth0)
			ev := enforce.Event{Change: enforce.Added, Route: attack, Answer: sys.edge(enforce.Added, &attack), Seen: time.Now(), Removed: true}
			if !ev.Answer.Delete { // as the fake has no such route, it is as good as deleted
				t.Fatalf("the edge answered %+v", ev.Answer)
			}
			if _, err := e.Close(t.Context(), "tun0"); err != nil {
				t.Fatal(err)
			}
			if after {
				ev.Seen = time.Now()
			}
			sys.sink.Tell(ev)
			if err := stop(); err != nil {
				t.Error(err)
			}
			if got := strings.Contains(sys.Text(), attack.Dst.String()); got != after {
				t.Errorf("the route is there: %t\n%s", got, sys.Text())
			}
		})
	}
}
