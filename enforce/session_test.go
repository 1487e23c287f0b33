package enforce_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

const bridge uint32 = 7

// addBridge makes a bridge inside split's protected prefix, as Docker does.
func addBridge(t *testing.T, sys *enforcetest.System, name string) {
	t.Helper()
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: bridge, Name: name, HW: "02:42:00:00:00:07", Up: true})
		return errors.Join(tb.AddAddress(bridge, pfx("172.31.9.1/24")), tb.Add(via("172.31.10.0/24", "172.31.9.2", bridge), enforcetest.Append))
	})
}

// TestExcludedInterfaceComesAndGoes: whether an excluded interface is there is no
// condition for anything, and its routes stay from the first moment.
func TestExcludedInterfaceComesAndGoes(t *testing.T) {
	for name, word := range map[string]string{"by name": "docker0", "by pattern": "dock*"} {
		t.Run(name, func(t *testing.T) {
			sys := newHost(t)
			s := split
			s.ExcludeInterfaces = []string{word}
			own := s
			own.Rearm = true
			e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{Own: []enforce.Session{own}})
			if st := status(t, e); st.State != enforce.Enforcing {
				t.Fatalf("before the bridge: %+v", st)
			}
			open(t, e, s)
			removed := status(t, e).Removed
			for range 3 {
				addBridge(t, sys, "docker0")
				eventually(t, "its routes are reported", func() bool {
					st, err := e.Status(t.Context())
					return err == nil && slices.ContainsFunc(st.Incidents, func(in enforce.Incident) bool {
						return in.What == "reported" && strings.Contains(in.Route, "172.31.9.0/24")
					})
				})
				eventually(t, "they stand", func() bool {
					return leavesBy(sys, "172.31.9.7") == bridge && leavesBy(sys, "172.31.10.7") == bridge
				})
				do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.DeleteLink(bridge) })
				eventually(t, "the tunnel has them again", func() bool { return leavesBy(sys, "172.31.9.7") == tun0 })
			}
			// What the edge took before the interface had a name came back.
			if st := status(t, e); st.State != enforce.Enforcing || st.Removed-removed > 3 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// busySystem lets something happen between a reading of the interfaces and the
// reading of the table that follows.
type busySystem struct {
	*enforcetest.System
	between atomic.Pointer[func()]
}

func (s *busySystem) Table(ctx context.Context) iter.Seq2[plan.Route, error] {
	if f := s.between.Swap(nil); f != nil {
		(*f)()
	}
	return s.System.Table(ctx)
}

// TestInterfaceComesBetweenReadings: the table names an interface that the readings
// of interfaces before it did not. Its routes are judged as any other's.
func TestInterfaceComesBetweenReadings(t *testing.T) {
	for name, excluded := range map[string]bool{"excluded": true, "not excluded": false} {
		t.Run(name, func(t *testing.T) {
			sys := &busySystem{System: newHost(t)}
			e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
			s := split
			if excluded {
				s.ExcludeInterfaces = []string{"docker0"}
			}
			open(t, e, s)
			sys.Lose(1 << 20) // nobody announces it
			come := func() { addBridge(t, sys.System, "docker0") }
			sys.between.Store(&come)
			e.Wake("test")
			eventually(t, "the table is judged", func() bool {
				return sys.between.Load() == nil && strings.Contains(sys.Text(), "172.31.9.0/24") == excluded
			})
			if err := stop(); err != nil {
				t.Error(err)
			}
			if got := leavesBy(sys.System, "172.31.9.7"); got != bridge {
				t.Errorf("in the end it leaves by %d:\n%s", got, sys.Text())
			}
		})
	}
}

// TestAddressComesBetweenReadings: the table shows connected routes whose addresses
// came after the interfaces were read, and again after they were read once more.
// They come back; one that is forged, with no address, does not.
func TestAddressComesBetweenReadings(t *testing.T) {
	sys := &busySystem{System: newHost(t)}
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	sys.Lose(1 << 20) // nobody announces them
	forged := plan.Route{Dst: pfx("172.31.11.0/24"), Hop: plan.Hop{Link: eth0}, Origin: plan.Kernel, Protocol: 2}
	again := func() {
		do(t, sys.System, 0, func(tb *enforcetest.Table) error { return tb.AddAddress(eth0, pfx("172.31.10.2/24")) })
	}
	come := func() {
		do(t, sys.System, 0, func(tb *enforcetest.Table) error {
			return errors.Join(tb.AddAddress(eth0, pfx("172.31.9.2/24")), tb.Add(forged, enforcetest.Add))
		})
		sys.between.Store(&again)
	}
	sys.between.Store(&come)
	e.Wake("test")
	eventually(t, "all three are removed", func() bool {
		text := sys.Text()
		return sys.between.Load() == nil && status(t, e).Removed == 3 && !strings.Contains(text, "172.31.9.0/24") &&
			!strings.Contains(text, "172.31.10.0/24") && !strings.Contains(text, "172.31.11.0/24")
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	text := sys.Text()
	if !strings.Contains(text, "172.31.9.0/24") || !strings.Contains(text, "172.31.10.0/24") || strings.Contains(text, "172.31.11.0/24") {
		t.Errorf("in the end:\n%s", text)
	}
}

// TestAddressComesAsTheSessionOpens: the same before any of the readings with which
// a session opens.
func TestAddressComesAsTheSessionOpens(t *testing.T) {
	for n := range 4 {
		sys := &busySystem{System: newHost(t)}
		e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
		sys.Lose(1 << 20) // nobody announces it
		var come func()
		come = func() {
			if n--; n < 0 {
				do(t, sys.System, 0, func(tb *enforcetest.Table) error { return tb.AddAddress(eth0, pfx("172.31.9.2/24")) })
				return
			}
			sys.between.Store(&come)
		}
		sys.between.Store(&come)
		open(t, e, split)
		eventually(t, "it is removed", func() bool {
			e.Wake("test")
			return status(t, e).Removed == 1
		})
		if err := stop(); err != nil {
			t.Error(err)
		}
		if !strings.Contains(sys.Text(), "172.31.9.0/24") {
			t.Errorf("in the end:\n%s", sys.Text())
		}
	}
}

// TestNewInterfaceHasItsName: the first that is heard of an interface is a route.
func TestNewInterfaceHasItsName(t *testing.T) {
	sys := newHost(t)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	addBridge(t, sys, "br-new")
	eventually(t, "both removals are told", func() bool { return status(t, e).Removed == 2 })
	st, err := e.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range st.Incidents {
		if !strings.Contains(in.Route, "dev br-new") || strings.Contains(in.Reason, "interface 7") {
			t.Errorf("%s: %s", in.Route, in.Reason)
		}
	}
}

// TestTunnelIsRenamed: a watched tunnel is its interface, whatever its name.
func TestTunnelIsRenamed(t *testing.T) {
	for name, kept := range map[string]bool{"a hook's session": false, "the daemon's own": true} {
		t.Run(name, func(t *testing.T) {
			sys := newHost(t)
			before := sys.Text()
			s := split
			s.Rearm = kept
			e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
			open(t, e, s)
			do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.Rename(tun0, "vpn0") })
			eventually(t, "the new name is told", func() bool { return status(t, e).Interface == "vpn0" })
			if st := status(t, e); st.Tunnel != "tun0" || st.State != enforce.Enforcing {
				t.Errorf("%+v", st)
			}
			add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
			eventually(t, "an attack is answered", func() bool { return leavesBy(sys, "172.31.5.1") == tun0 })
			open(t, e, s) // the hook again, by the old name
			byNew := s
			byNew.Tunnel = "vpn0"
			if st := open(t, e, byNew); st.Tunnel != "vpn0" || st.State != enforce.Enforcing {
				t.Errorf("opened by the new name: %+v", st)
			}
			open(t, e, byNew)
			do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.Rename(tun0, "tun0") })
			eventually(t, "and renamed back", func() bool { return status(t, e).Interface == "tun0" })
			if _, err := e.Close(t.Context(), "tun0"); err != nil {
				t.Error(err)
			}
			do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.Rename(tun0, "tun0") })
			if sys.Text() != before {
				t.Errorf("after the end:\n%s", sys.Text())
			}
		})
	}
}

// TestRenamedTunnelVanishes: by its index it is gone, whoever has its name.
func TestRenamedTunnelVanishes(t *testing.T) {
	sys := newHost(t)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.Rename(tun0, "vpn0") })
	eventually(t, "the new name is told", func() bool { return status(t, e).Interface == "vpn0" })
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.DeleteLink(tun0) })
	eventually(t, "the session ends", func() bool {
		st, err := e.Status(t.Context())
		return err == nil && len(st.Sessions) == 0
	})
}

// TestRenamedTunnelIsReopened: the next process finds it by what it is now.
func TestRenamedTunnelIsReopened(t *testing.T) {
	sys := newHost(t)
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
	}
	s := split
	s.ExcludeInterfaces = []string{"docker0"} // away at the restart: no reason to give the session up
	life(func(e *enforce.Enforcer) {
		open(t, e, s)
		do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.Rename(tun0, "vpn0") })
		eventually(t, "the new name is told", func() bool { return status(t, e).Interface == "vpn0" })
	})
	life(func(e *enforce.Enforcer) {
		if st := status(t, e); st.State != enforce.Enforcing || st.Interface != "vpn0" {
			t.Errorf("after a restart: %+v", st)
		}
	})
}

// placelessJournal is a Journal whose place was taken away.
type placelessJournal struct {
	*enforcetest.Journal
	lost atomic.Bool
}

func (j *placelessJournal) Secure() error {
	if j.lost.Load() {
		return errors.New("read-only file system")
	}
	return nil
}

// TestNoPlaceOutlivesAnotherLook: a reading that looks at the interfaces once more
// does not make a session right whose held routes a crash would lose.
func TestNoPlaceOutlivesAnotherLook(t *testing.T) {
	sys, j := &busySystem{System: newHost(t)}, &placelessJournal{Journal: &enforcetest.Journal{}}
	e, stop := run(t, sys, j, enforce.Options{})
	open(t, e, split)
	state := func() enforce.SessionStatus { return status(t, e) }
	j.lost.Store(true)
	e.Wake("test")
	eventually(t, "a failed session", func() bool { return state().State == enforce.Failed })
	come := func() { addBridge(t, sys.System, "docker0") }
	sys.between.Store(&come)
	e.Wake("test")
	eventually(t, "another look", func() bool { return sys.between.Load() == nil })
	if st := state(); st.State != enforce.Failed || !strings.Contains(st.Error, "read-only file system") {
		t.Errorf("%s: %s", st.State, st.Error)
	}
	j.lost.Store(false)
	e.Wake("test")
	eventually(t, "an enforcing session", func() bool { return state().State == enforce.Enforcing })
	if err := stop(); err != nil {
		t.Error(err)
	}
}
