package enforce_test

import (
	"context"
	"errors"
	"iter"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// backlog is a System whose announcements wait while the test holds them back, as they
// do in the socket of a busy machine.
type backlog struct {
	*enforcetest.System
	sync.Mutex // held: nothing is served
}

func (s *backlog) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	late := func(change enforce.Change, r *plan.Route) enforce.Answer {
		s.Lock()
		defer s.Unlock()
		return edge(change, r)
	}
	return s.System.Watch(ctx, late, sink, ready)
}

// served waits until nothing that was announced waits for the edge.
func (s *backlog) served(t *testing.T) {
	t.Helper()
	eventually(t, "all announcements are served", func() bool { return s.Pending() == 0 })
}

// onFirstPolicy calls f on the loop once a policy protects something, and before the
// table is read by it.
func onFirstPolicy(f func()) func(enforce.Protection) {
	var once sync.Once
	return func(p enforce.Protection) {
		if len(p.Sessions) > 0 {
			once.Do(f)
		}
	}
}

func sameAfter(t *testing.T, what, before, after string) {
	t.Helper()
	if after != before {
		t.Errorf("%s: after\n%sbefore\n%s", what, after, before)
	}
}

// TestAnnouncedAsTheSessionOpens: what stood before the connection comes back, although
// the edge path hears of it when the policy is in force and the table has not been read.
func TestAnnouncedAsTheSessionOpens(t *testing.T) {
	stood := via("172.31.5.0/24", "192.168.1.66", eth0)
	for name, early := range map[string]bool{"announced before": true, "put in again meanwhile": false} {
		t.Run(name, func(t *testing.T) {
			sys, j := &backlog{System: newHost(t)}, &enforcetest.Journal{}
			e, stop := run(t, sys, j, enforce.Options{OnPolicy: onFirstPolicy(func() {
				if !early {
					do(t, sys.System, 0, func(tb *enforcetest.Table) error {
						return errors.Join(tb.DeleteExact(stood), tb.Add(stood, enforcetest.Append))
					})
				}
				if early {
					sys.Unlock()
				}
				sys.served(t)
			})})
			if early {
				sys.Lock()
			}
			add(t, sys.System, stood)
			before := sys.Text()
			if st := open(t, e, split); len(st.Held) != 1 || strings.Contains(sys.Text(), "172.31.5.0/24") {
				t.Errorf("held %v of\n%s", st.Held, sys.Text())
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			sameAfter(t, "the end", before, sys.Text())
		})
	}
}

// TestNewsOfWhatIsGone: an announcement waits so long that its route was taken back. It
// is no newer copy of what is held, and does not come back itself.
func TestNewsOfWhatIsGone(t *testing.T) {
	for name, within := range map[string]bool{"before the table is read": true, "after": false} {
		t.Run(name, func(t *testing.T) {
			sys, j := &backlog{System: newHost(t)}, &enforcetest.Journal{}
			stood, other := via("172.31.5.0/24", "192.168.1.66", eth0), via("172.31.5.0/24", "192.168.1.67", eth0)
			gone := via("172.31.6.0/24", "192.168.1.66", eth0)
			add(t, sys.System, stood)
			before := sys.Text()
			e, stop := run(t, sys, j, enforce.Options{OnPolicy: onFirstPolicy(func() {
				if within {
					sys.Unlock()
					sys.served(t)
				}
			})})
			sys.Lock()
			for _, r := range []plan.Route{other, gone} {
				do(t, sys.System, 4711, func(tb *enforcetest.Table) error {
					return errors.Join(tb.Add(r, enforcetest.Append), tb.DeleteExact(r))
				})
			}
			open(t, e, split)
			if !within {
				sys.Unlock()
				sys.served(t)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			sameAfter(t, "the end", before, sys.Text())
		})
	}
}

// TestArmed: until the table has been read by a policy, the edge path deletes what
// conflicted before, and only tells of what conflicts anew. Then it deletes both.
func TestArmed(t *testing.T) {
	const tun1 = 7
	old, fresh := via("172.31.1.0/24", "192.168.1.66", eth0), via("172.29.1.0/24", "192.168.1.66", eth0)
	sys := &lateSystem{System: newHost(t)}
	do(t, sys.System, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: tun1, Name: "tun1", Up: true})
		return tb.AddAddress(tun1, pfx("10.9.0.2/24"))
	})
	asked := false
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{OnPolicy: func(p enforce.Protection) {
		if len(p.Sessions) < 2 || asked {
			return
		}
		asked = true
		if a := sys.edge(enforce.Added, &old); !a.Delete {
			t.Errorf("of what conflicted before the edge says %+v", a)
		}
		if a := sys.edge(enforce.Added, &fresh); a.Delete || !a.Tell {
			t.Errorf("of what may have stood the edge says %+v", a)
		}
		missing := via("172.29.0.0/16", "10.9.0.1", tun1)
		if a := sys.edge(enforce.Deleted, &missing); a.Put != nil {
			t.Errorf("the edge makes up %+v", a.Put)
		}
	}})
	open(t, e, split)
	open(t, e, enforce.Session{Tunnel: "tun1", Protect: []netip.Prefix{pfx("172.29.0.0/16")}})
	for _, r := range []plan.Route{old, fresh} {
		if a := sys.edge(enforce.Added, &r); !a.Delete {
			t.Errorf("of %v the edge says %+v", r.Dst, a)
		}
	}
	if err := stop(); err != nil || !asked {
		t.Errorf("asked %v, %v", asked, err)
	}
}

// unreadable is a System whose table cannot be read from some moment on.
type unreadable struct {
	*backlog
	mu     sync.Mutex
	broken bool
}

func (s *unreadable) Table(ctx context.Context) iter.Seq2[plan.Route, error] {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return func(yield func(plan.Route, error) bool) { yield(plan.Route{}, errors.New("no memory")) }
	}
	return s.backlog.Table(ctx)
}

func (s *unreadable) set(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

// late is an unreadable System whose events the test tells itself.
type late struct {
	*unreadable
	edge enforce.Edge
	sink *enforce.Sink
}

func (s *late) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	s.edge, s.sink = edge, sink
	ready()
	<-ctx.Done()
	return nil
}

// TestTableUnreadableAsTheSessionOpens: what is announced is removed all the same, and
// written down, for it may have stood.
func TestTableUnreadableAsTheSessionOpens(t *testing.T) {
	sys, j := &unreadable{backlog: &backlog{System: newHost(t)}}, &enforcetest.Journal{}
	e, stop := run(t, sys, j, enforce.Options{OnPolicy: onFirstPolicy(func() { sys.set(true) })})
	before := sys.Text()
	if st := open(t, e, split); st.State != enforce.Failed || !strings.Contains(st.Error, "no memory") {
		t.Errorf("state %s, error %q", st.State, st.Error)
	}
	stood := via("172.31.5.0/24", "192.168.1.66", eth0)
	add(t, sys.System, stood)
	eventually(t, "it is removed", func() bool { return sys.Text() == before && len(j.Entries()) == 1 })
	sys.set(false)
	e.Wake("test")
	eventually(t, "the session enforces", func() bool { return status(t, e).State == enforce.Enforcing })
	if err := stop(); err != nil {
		t.Error(err)
	}
	if got := leavesBy(sys.System, "172.31.5.1"); got != eth0 {
		t.Errorf("afterwards it leaves by %d:\n%s", got, sys.Text())
	}
}

// TestEdgeDoesNotAllocate: neither once the table has been read nor before.
func TestEdgeDoesNotAllocate(t *testing.T) {
	sys := &lateSystem{System: newHost(t)}
	two := via("172.31.1.0/24", "192.168.1.66", eth0)
	two = two.WithHops(two.Hop, plan.Hop{Link: 77})
	routes := []plan.Route{via("172.31.1.0/24", "192.168.1.66", eth0), via("172.31.1.0/24", "", 77), via("172.31.0.0/16", "", tun0), two}
	measure := func(when string) {
		for i := range routes {
			for _, change := range []enforce.Change{enforce.Added, enforce.Deleted} {
				if n := testing.AllocsPerRun(100, func() { sys.edge(change, &routes[i]) }); n != 0 {
					t.Errorf("%s: %v allocations for %v", when, n, routes[i])
				}
			}
		}
	}
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{OnPolicy: onFirstPolicy(func() { measure("before the table is read") })})
	open(t, e, split)
	measure("then")
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// BenchmarkEdge: the answer to an attack.
func BenchmarkEdge(b *testing.B) {
	t := &testing.T{}
	sys := &lateSystem{System: newHost(t)}
	e := enforce.New(sys, &enforcetest.Journal{}, enforce.Options{})
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	<-e.Ready()
	if _, err := e.Open(ctx, split); err != nil {
		b.Fatal(err)
	}
	attack := via("172.31.1.0/24", "192.168.1.66", eth0)
	for b.Loop() {
		if a := sys.edge(enforce.Added, &attack); !a.Delete {
			b.Fatalf("%+v", a)
		}
	}
	cancel()
	<-ended
}

// TestAnnouncedBeforeThePolicy: the edge path let a route stand by the policy before. The
// news of it is taken in by a policy that it conflicts with, and whose first look at the
// table failed. It stood before.
func TestAnnouncedBeforeThePolicy(t *testing.T) {
	sys, j := &late{unreadable: &unreadable{backlog: &backlog{System: newHost(t)}}}, &enforcetest.Journal{}
	wider := split
	wider.Protect = append([]netip.Prefix{pfx("198.51.0.0/16")}, split.Protect...)
	e, stop := run(t, sys, j, enforce.Options{OnPolicy: func(p enforce.Protection) {
		if len(p.Sessions) > 0 && len(p.Sessions[0].Protect) == len(wider.Protect) {
			sys.set(true)
		}
	}})
	open(t, e, split)
	r := via("198.51.100.0/24", "192.168.1.66", eth0)
	add(t, sys.System, r)
	ev := enforce.Event{Change: enforce.Added, Route: r, Answer: sys.edge(enforce.Added, &r), Seen: time.Now()}
	if !ev.Answer.Tell || ev.Answer.Delete {
		t.Fatalf("the edge answered %+v", ev.Answer)
	}
	before := sys.Text()
	open(t, e, wider)
	sys.sink.Tell(ev)
	eventually(t, "it is removed", func() bool { return !strings.Contains(sys.Text(), "198.51.100.0/24") })
	if got := j.Entries(); len(got) != 1 {
		t.Errorf("held: %+v", got)
	}
	sys.set(false)
	if err := stop(); err != nil {
		t.Error(err)
	}
	sameAfter(t, "the end", before, sys.Text())
}
