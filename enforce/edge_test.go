package enforce_test

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// TestEdgeAnswers asks the edge function itself: the level path would mend most of what
// it fails to do some milliseconds later, and nobody would see the difference.
func TestEdgeAnswers(t *testing.T) {
	const docker = 8
	tunnels := via("172.31.0.0/16", "10.8.0.1", tun0)
	two := func(dst string) plan.Route {
		r := via(dst, "192.168.1.66", eth0)
		return r.WithHops(r.Hop, plan.Hop{Link: tun0, Via: netip.MustParseAddr("10.8.0.1")})
	}
	changed := func(r plan.Route, f func(*plan.Route)) plan.Route { f(&r); return r }
	type answer struct{ put, del, tell bool }
	for name, c := range map[string]struct {
		change enforce.Change
		r      plan.Route
		want   answer
		audit  answer
	}{
		"the tunnel's route is deleted":         {enforce.Deleted, tunnels, answer{put: true, tell: true}, answer{tell: true}},
		"another route of the tunnel's":         {enforce.Deleted, via("172.31.5.0/24", "10.8.0.1", tun0), answer{}, answer{}},
		"the tunnel's for a TOS":                {enforce.Deleted, changed(tunnels, func(r *plan.Route) { r.TOS = 8 }), answer{}, answer{}},
		"a conflict is deleted":                 {enforce.Deleted, via("172.31.5.0/24", "192.168.1.66", eth0), answer{}, answer{}},
		"longer":                                {enforce.Added, via("172.31.5.0/24", "192.168.1.66", eth0), answer{del: true, tell: true}, answer{tell: true}},
		"equal":                                 {enforce.Added, via("172.31.0.0/16", "192.168.1.66", eth0), answer{put: true, del: true, tell: true}, answer{tell: true}},
		"equal, in a table of the VPN's own":    {enforce.Added, via("172.30.0.0/16", "192.168.1.66", eth0), answer{}, answer{}},
		"longer than that":                      {enforce.Added, via("172.30.5.0/24", "192.168.1.66", eth0), answer{del: true, tell: true}, answer{tell: true}},
		"equal, shares the tunnel's leg":        {enforce.Added, two("172.31.0.0/16"), answer{put: true, tell: true}, answer{tell: true}},
		"longer, one leg is the tunnel":         {enforce.Added, two("172.31.5.0/24"), answer{del: true, tell: true}, answer{tell: true}},
		"connected":                             {enforce.Added, enforcetest.ConnectedRoute(eth0, pfx("172.31.9.2/24")), answer{tell: true}, answer{tell: true}},
		"by an interface that is excluded":      {enforce.Added, via("172.31.5.0/24", "", docker), answer{tell: true}, answer{tell: true}},
		"outside what is protected":             {enforce.Added, via("203.0.113.0/24", "192.168.1.66", eth0), answer{}, answer{}},
		"it leads to the server":                {enforce.Added, via("198.51.0.0/16", "192.168.1.66", eth0), answer{tell: true}, answer{tell: true}},
		"what led to the server is deleted":     {enforce.Deleted, via("198.51.0.0/16", "192.168.1.66", eth0), answer{tell: true}, answer{tell: true}},
		"the server's own host route is added":  {enforce.Added, via("198.51.100.7/32", "192.168.1.1", eth0), answer{tell: true}, answer{tell: true}},
		"the tunnel's route is added once more": {enforce.Added, tunnels, answer{}, answer{}},
	} {
		for _, audit := range []bool{false, true} {
			sys := &lateSystem{System: newHost(t)}
			do(t, sys.System, 0, func(tb *enforcetest.Table) error {
				tb.AddLink(plan.Link{Index: docker, Name: "docker0", Up: true})
				return nil
			})
			e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{Audit: audit})
			if a := sys.edge(c.change, &c.r); a.Put != nil || a.Delete || a.Tell {
				t.Errorf("%s: without a session the edge says %+v", name, a)
			}
			s := split
			s.Protect = append([]netip.Prefix{pfx("172.30.0.0/16")}, s.Protect...)
			s.OtherTable, s.ExcludeInterfaces = []netip.Prefix{pfx("172.30.0.0/16")}, []string{"docker0"}
			open(t, e, s)
			want := c.want
			if audit {
				want = c.audit
			}
			a := sys.edge(c.change, &c.r)
			if got := (answer{a.Put != nil, a.Delete, a.Tell}); got != want {
				t.Errorf("%s, audit %v: %+v, want %+v", name, audit, got, want)
			}
			if a.Put != nil && !a.Put.Same(tunnels) {
				t.Errorf("%s: the edge puts %+v", name, a.Put)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestWhatTheEdgeDidIsTold: which news are incidents, and which are not.
func TestWhatTheEdgeDidIsTold(t *testing.T) {
	attack, tunnels := via("172.31.5.0/24", "192.168.1.66", eth0), via("172.31.0.0/16", "10.8.0.1", tun0)
	for name, c := range map[string]struct {
		change enforce.Change
		r      plan.Route
		set    func(*enforce.Event)
		want   string // what is told
	}{
		"removed":                     {enforce.Added, attack, func(ev *enforce.Event) { ev.Removed = true }, "removed"},
		"nothing to remove":           {enforce.Added, attack, func(ev *enforce.Event) { ev.Idle = true }, ""},
		"not removed":                 {enforce.Added, attack, func(ev *enforce.Event) { ev.Err = syscall.EPERM }, "failed"},
		"put back":                    {enforce.Deleted, tunnels, func(ev *enforce.Event) { ev.Readded = true }, "readded"},
		"it was there":                {enforce.Deleted, tunnels, func(ev *enforce.Event) { ev.Idle = true }, ""},
		"the tunnel is gone":          {enforce.Deleted, tunnels, func(ev *enforce.Event) { ev.Err = enforce.ErrGone }, ""},
		"the tunnel is down":          {enforce.Deleted, tunnels, func(ev *enforce.Event) { ev.Err = enforce.ErrNotNow }, ""},
		"not put back":                {enforce.Deleted, tunnels, func(ev *enforce.Event) { ev.Err = syscall.EPERM }, "failed"},
		"deleted, nothing to be done": {enforce.Deleted, tunnels, func(ev *enforce.Event) { ev.Answer.Put = nil }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			sys := &late{unreadable: &unreadable{backlog: &backlog{System: newHost(t)}}}
			e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
			open(t, e, split)
			sys.set(true) // whatever is told is the event's
			ev := enforce.Event{Change: c.change, Route: c.r, Answer: sys.edge(c.change, &c.r), Seen: time.Now(), Done: time.Now()}
			if c.set(&ev); !ev.Answer.Tell {
				t.Fatalf("the edge answered %+v", ev.Answer)
			}
			sys.sink.Tell(ev)
			marker := via("172.31.66.0/24", "192.168.1.66", eth0) // comes behind it
			sys.sink.Tell(enforce.Event{Route: marker, Answer: sys.edge(enforce.Added, &marker), Removed: true})
			var told []string
			eventually(t, "both are taken in", func() bool {
				st, err := e.Status(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				told = nil
				for _, in := range st.Incidents {
					if strings.Contains(in.Route, "172.31.66.0/24") {
						return true
					}
					if in.Path != "edge" || in.Tunnel != "tun0" {
						t.Errorf("%+v", in)
					}
					told = append(told, in.What)
				}
				return false
			})
			if got := strings.Join(told, " "); got != c.want {
				t.Errorf("told %q, want %q", got, c.want)
			}
			sys.set(false)
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReportedByTheEdge: an excluded interface's route is reported when it is announced,
// not removed and not counted as removed. Where nothing is changed neither is a conflict.
func TestReportedByTheEdge(t *testing.T) {
	for name, audit := range map[string]bool{"excluded": false, "audit": true} {
		t.Run(name, func(t *testing.T) {
			sys := &unreadable{backlog: &backlog{System: newHost(t)}}
			found := make(chan enforce.Incident, 16)
			e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{Audit: audit, Observe: func(in enforce.Incident) { found <- in }})
			s := split
			if !audit {
				s.ExcludeInterfaces = []string{"eth0"}
			}
			open(t, e, s)
			sys.set(true)
			add(t, sys.System, via("172.31.5.0/24", "192.168.1.66", eth0))
			select {
			case in := <-found:
				if in.What != "reported" || !strings.Contains(in.Route, "172.31.5.0/24") {
					t.Errorf("%+v", in)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("nothing is reported")
			}
			if st := status(t, e); st.Removed != 0 || !strings.Contains(sys.Text(), "172.31.5.0/24") {
				t.Errorf("removed %d:\n%s", st.Removed, sys.Text())
			}
			sys.set(false)
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReportedAgain: what stood, went and came again is told of twice; what stands on is
// told of once.
func TestReportedAgain(t *testing.T) {
	sys := newHost(t)
	var told atomic.Int64
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{Observe: func(enforce.Incident) { told.Add(1) }})
	s := split
	s.ExcludeInterfaces = []string{"eth0"}
	stands := via("172.31.5.0/24", "192.168.1.66", eth0)
	add(t, sys, stands)
	eventually(t, "the announcement is served", func() bool { return sys.Pending() == 0 })
	open(t, e, s)
	sys.Lose(1 << 20)
	look := func() {
		t.Helper()
		if _, err := e.Reload(t.Context(), nil); err != nil { // it looks at the table
			t.Fatal(err)
		}
	}
	look()
	if got := told.Load(); got != 1 {
		t.Errorf("told %d times", got)
	}
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.DeleteExact(stands) })
	look()
	look()
	add(t, sys, stands)
	look()
	if got := told.Load(); got != 2 {
		t.Errorf("told %d times of what came again", got)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestRenewalKeepsItsPlace: a held route stood ahead of the tunnel's own. A newer copy of
// it comes back there. Where the newer cannot be written down the older is still held.
func TestRenewalKeepsItsPlace(t *testing.T) {
	for name, full := range map[string]bool{"renewed": false, "the disk is full": true} {
		t.Run(name, func(t *testing.T) {
			sys := &late{unreadable: &unreadable{backlog: &backlog{System: newHost(t)}}}
			var refuse atomic.Bool
			j := &enforcetest.Journal{Refuse: func(op string) error {
				if op == "hold" && refuse.Load() {
					return syscall.ENOSPC
				}
				return nil
			}}
			older := via("172.31.0.0/16", "192.168.1.66", eth0)
			newer := older
			newer.PrefSrc = netip.MustParseAddr("192.168.1.10")
			do(t, sys.System, 0, func(tb *enforcetest.Table) error { return tb.Add(older, enforcetest.Prepend) })
			before := sys.Text()
			e, stop := run(t, sys, j, enforce.Options{})
			open(t, e, split)
			sys.set(true)
			refuse.Store(full)
			sys.sink.Tell(enforce.Event{Route: newer, Answer: sys.edge(enforce.Added, &newer), Removed: true, Seen: time.Now()})
			if want := before; !full {
				eventually(t, "the newer is held", func() bool {
					got := j.Entries()
					return len(got) == 1 && got[0].Route.PrefSrc.IsValid()
				})
				before = strings.Replace(want, "172.31.0.0/16 via 192.168.1.66 dev 2 proto 3", "172.31.0.0/16 via 192.168.1.66 dev 2 proto 3 src 192.168.1.10", 1)
			} else {
				eventually(t, "it is taken in", func() bool { return len(status(t, e).Contested) > 0 || len(incidents(t, e)) > 1 })
			}
			refuse.Store(false)
			sys.set(false)
			if err := stop(); err != nil {
				t.Error(err)
			}
			sameAfter(t, "the end", before, sys.Text())
		})
	}
}

func incidents(t *testing.T, e *enforce.Enforcer) []enforce.Incident {
	t.Helper()
	st, err := e.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.Incidents
}

// TestNotPutBackTwice: what was put back because the policy lets it stand is not held
// beside. What cannot be put back now is, and comes back later.
func TestNotPutBackTwice(t *testing.T) {
	for name, refused := range map[string]error{"put back": nil, "it is there": enforce.ErrAlready, "not now": enforce.ErrNotNow} {
		t.Run(name, func(t *testing.T) {
			sys, j := &late{unreadable: &unreadable{backlog: &backlog{System: newHost(t)}}}, &enforcetest.Journal{}
			var on atomic.Bool
			var tried atomic.Int64
			sys.Refuse = func(a plan.Action) error {
				if a.Kind != plan.Restore || !on.Load() {
					return nil
				}
				tried.Add(1)
				return refused
			}
			e, stop := run(t, sys, j, enforce.Options{})
			open(t, e, split)
			r := via("172.31.5.0/24", "192.168.1.66", eth0)
			a := sys.edge(enforce.Added, &r)
			spared := split
			spared.Exclude = []netip.Prefix{pfx("172.31.5.0/24")}
			open(t, e, spared)
			sys.set(true)
			on.Store(true)
			sys.sink.Tell(enforce.Event{Route: r, Answer: a, Removed: true, Seen: time.Now()})
			eventually(t, "it is put back", func() bool { return tried.Load() > 0 })
			eventually(t, "the event is taken in", func() bool { return len(j.Entries()) == 1 || refused != enforce.ErrNotNow })
			if got := j.Entries(); (len(got) == 1) != (refused == enforce.ErrNotNow) {
				t.Errorf("held: %+v", got)
			}
			on.Store(false)
			sys.set(false)
			if err := stop(); err != nil || len(j.Entries()) > 0 {
				t.Errorf("%v, held %+v", err, j.Entries())
			}
			if there := strings.Contains(sys.Text(), "172.31.5.0/24"); there != (refused != enforce.ErrAlready) {
				t.Errorf("it is there: %v\n%s", there, sys.Text())
			}
		})
	}
}

// TestFullDiskIsTriedAgain: what could not be written down is removed within a second or
// two of the disk having room, although nothing happens.
func TestFullDiskIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := newHost(t)
		var full atomic.Bool
		full.Store(true)
		j := &enforcetest.Journal{Refuse: func(op string) error {
			if op == "hold" && full.Load() {
				return syscall.ENOSPC
			}
			return nil
		}}
		add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
		before := sys.Text()
		e, stop := run(t, sys, j, enforce.Options{})
		open(t, e, split)
		time.Sleep(3 * time.Second)
		full.Store(false)
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if st := status(t, e); st.State != enforce.Enforcing || len(st.Held) != 1 || leavesBy(sys, "172.31.5.1") != tun0 {
			t.Errorf("state %s, held %v:\n%s", st.State, st.Held, sys.Text())
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		sameAfter(t, "the end", before, sys.Text())
	})
}

// TestRoutesStillOut: what cannot be given back stays in the journal and is named in the
// error; the next start gives it back.
func TestRoutesStillOut(t *testing.T) {
	sys, j := newHost(t), &enforcetest.Journal{}
	add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
	before := sys.Text()
	sys.Refuse = func(a plan.Action) error {
		if a.Kind == plan.Restore {
			return syscall.EPERM
		}
		return nil
	}
	e, stop := run(t, sys, j, enforce.Options{})
	open(t, e, split)
	if err := stop(); !errors.Is(err, enforce.ErrNotNow) || !strings.Contains(err.Error(), "172.31.5.0/24") || !strings.HasPrefix(err.Error(), "1 routes") {
		t.Errorf("it ends with %v", err)
	}
	if got := j.Entries(); len(got) != 1 {
		t.Errorf("held: %+v", got)
	}
	sys.Refuse = nil
	if _, err := enforce.Recover(t.Context(), sys, j, enforce.Options{}); err != nil {
		t.Error(err)
	}
	sameAfter(t, "recover", before, sys.Text())
}

// TestGivenBackByItsOwner: what its owner has put back by the time that it is given back
// is owed no longer, and neither is what cannot be any more.
func TestGivenBackByItsOwner(t *testing.T) {
	for _, answer := range []error{enforce.ErrAlready, enforce.ErrGone} {
		sys, j := newHost(t), &enforcetest.Journal{}
		add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
		sys.Refuse = func(a plan.Action) error {
			if a.Kind == plan.Restore {
				return answer
			}
			return nil
		}
		e, stop := run(t, sys, j, enforce.Options{})
		open(t, e, split)
		if err := stop(); err != nil || len(j.Entries()) > 0 {
			t.Errorf("%v: %v, held %+v", answer, err, j.Entries())
		}
	}
}

// TestRefusedRenewal: a newer copy of a held route cannot be deleted. It stands, and the
// older is what is held.
func TestRefusedRenewal(t *testing.T) {
	sys, j := newHost(t), &enforcetest.Journal{}
	var tried, on atomic.Int64
	sys.Refuse = func(a plan.Action) error {
		if a.Kind == plan.Remove && on.Load() > 0 {
			tried.Add(1)
			return syscall.EPERM
		}
		return nil
	}
	add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
	e, stop := run(t, sys, j, enforce.Options{})
	open(t, e, split)
	older := j.Entries()
	on.Store(1)
	newer := via("172.31.5.0/24", "192.168.1.66", eth0)
	newer.PrefSrc = netip.MustParseAddr("192.168.1.10")
	add(t, sys, newer)
	eventually(t, "the session fails", func() bool { return tried.Load() > 1 && status(t, e).State == enforce.Failed })
	if got := j.Entries(); len(got) != 1 || len(older) != 1 || got[0].ID != older[0].ID {
		t.Errorf("held %+v, before %+v", got, older)
	}
	if err := stop(); err != nil || len(j.Entries()) > 0 {
		t.Errorf("%v, held %+v", err, j.Entries())
	}
}
