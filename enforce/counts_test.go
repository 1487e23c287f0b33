package enforce_test

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// totals returns the sums of all sessions, once they are what the table itself
// counts of the Enforcer's changes.
func totals(t *testing.T, e *enforce.Enforcer, sys *enforcetest.System) enforce.Totals {
	t.Helper()
	var all enforce.Totals
	var made enforcetest.Made
	exact := func() bool {
		st, err := e.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all, made = st.Totals, sys.Made()
		return all.Readded+all.Restored == uint64(made.Added) && all.Removed+all.Withdrawn == uint64(made.Deleted)
	}
	eventually(t, "the sums are the table's own", exact)
	return all
}

// TestPinholesAreCounted: what keeps the way to the server is put for the session.
func TestPinholesAreCounted(t *testing.T) {
	sys := newHost(t)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	st := open(t, e, full)
	all := totals(t, e, sys)
	const routes, pinholes = 4, 2 // to the server, to the gateway
	if st.Readded != routes+pinholes || all.Readded != st.Readded {
		t.Errorf("%d put for the session, %d for all:\n%s", st.Readded, all.Readded, sys.Text())
	}
	st, err := e.Close(t.Context(), "tun0")
	if err != nil {
		t.Fatal(err)
	}
	if all := totals(t, e, sys); st.Withdrawn == 0 || all.Withdrawn != st.Withdrawn || all.Restored != st.Restored || st.Restored != st.Removed {
		t.Errorf("the session's %+v are not all %+v", st.Totals(), all)
	}
}

// TestPinholeOfASecondSession: a pinhole counts for the session that needs it, not
// for the first.
func TestPinholeOfASecondSession(t *testing.T) {
	const tun1 = 7
	sys := newHost(t)
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: tun1, Name: "tun1", Up: true})
		return tb.AddAddress(tun1, pfx("10.9.0.2/24"))
	})
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	before := open(t, e, split)
	second := full
	second.Tunnel = "tun1"
	st := open(t, e, second)
	all := totals(t, e, sys)
	if st.Readded == 0 || all.Readded != before.Readded+st.Readded {
		t.Errorf("%+v and %+v of %+v", before.Totals(), st.Totals(), all)
	}
}

// TestRestoresByAnotherPolicyAreCounted: what comes back because the session excludes
// it now, or protects it no longer, is the session's, and so is what comes back later.
func TestRestoresByAnotherPolicyAreCounted(t *testing.T) {
	except, less := split, split
	except.Exclude = append(except.Exclude, pfx("172.31.2.0/23"))
	less.Protect = []netip.Prefix{pfx("172.31.0.0/23")}
	for name, second := range map[string]enforce.Session{"excluded": except, "protected no longer": less} {
		t.Run(name, func(t *testing.T) {
			sys := newHost(t)
			for _, dst := range []string{"172.31.1.0/24", "172.31.2.0/24", "172.31.3.0/24"} {
				add(t, sys, via(dst, "192.168.1.66", eth0))
			}
			e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
			open(t, e, split)
			if st := open(t, e, second); st.Removed != 3 || st.Restored != 2 || len(st.Held) != 1 {
				t.Errorf("%+v, %d held", st.Totals(), len(st.Held))
			}
			st, err := e.Close(t.Context(), "tun0")
			if err != nil {
				t.Fatal(err)
			}
			if all := totals(t, e, sys); st.Restored != 3 || all.Restored != 3 {
				t.Errorf("%d restored for the session, %d for all", st.Restored, all.Restored)
			}
		})
	}
}

// TestRecoveredIsCounted: what a crash had left out comes back for no session, and is
// counted.
func TestRecoveredIsCounted(t *testing.T) {
	sys, j := newHost(t), &enforcetest.Journal{}
	if err := j.Hold([]enforce.Entry{{ID: 1, Route: via("172.31.1.0/24", "192.168.1.66", eth0)}}); err != nil {
		t.Fatal(err)
	}
	e, _ := run(t, sys, j, enforce.Options{})
	if all := totals(t, e, sys); all.Restored != 1 {
		t.Errorf("%+v", all)
	}
}

// incidentsOf returns how many changes the incidents tell of.
func incidentsOf(t *testing.T, e *enforce.Enforcer, what string) (n uint64) {
	t.Helper()
	st, err := e.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range st.Incidents {
		if in.What == what {
			n += max(1, in.Count)
		}
	}
	return n
}

// TestReplacementIsCountedAndTold: the edge path puts the tunnel's route back that
// was replaced, and deletes what replaced it.
func TestReplacementIsCountedAndTold(t *testing.T) {
	sys := newHost(t)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	do(t, sys, 4711, func(tb *enforcetest.Table) error {
		return tb.Add(via("172.31.0.0/16", "192.168.1.66", eth0), enforcetest.Replace)
	})
	eventually(t, "both are told", func() bool {
		return incidentsOf(t, e, "readded") == 1 && incidentsOf(t, e, "removed") == 1
	})
	all := totals(t, e, sys)
	if st := status(t, e); st.Readded != 1 || st.Removed != 1 || all != st.Totals() {
		t.Errorf("%+v of %+v", st.Totals(), all)
	}
}

// TestToldAfterTheEnd: what the edge path deleted for a session counts for it, and is
// told with its tunnel, though the news came after its end.
func TestToldAfterTheEnd(t *testing.T) {
	sys := &lateSystem{System: newHost(t)}
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	attack := via("172.31.1.0/24", "192.168.1.66", eth0)
	ev := enforce.Event{Change: enforce.Added, Route: attack, Answer: sys.edge(enforce.Added, &attack), Seen: time.Now(), Removed: true}
	if _, err := e.Close(t.Context(), "tun0"); err != nil {
		t.Fatal(err)
	}
	sys.sink.Tell(ev)
	eventually(t, "it is told", func() bool { return incidentsOf(t, e, "removed") == 1 })
	st, err := e.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if in := st.Incidents[0]; st.Totals.Removed != 1 || in.Tunnel != "tun0" {
		t.Errorf("%d removed; told of tunnel %q", st.Totals.Removed, in.Tunnel)
	}
}

// TestAmendsAreCounted: a route that is put back because the policy by which it was
// deleted was just being replaced was deleted, and it came back.
func TestAmendsAreCounted(t *testing.T) {
	sys := &lateSystem{System: newHost(t)}
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	r := via("172.31.1.0/24", "192.168.1.66", eth0)
	answer := sys.edge(enforce.Added, &r)
	except := split
	except.Exclude = append(except.Exclude, pfx("172.31.1.0/24"))
	open(t, e, except)
	sys.sink.Tell(enforce.Event{Change: enforce.Added, Route: r, Answer: answer, Seen: time.Now(), Removed: true})
	eventually(t, "the deletion is told", func() bool { return incidentsOf(t, e, "removed") == 1 })
	if st := status(t, e); st.Removed != 1 || st.Restored != 1 {
		t.Errorf("%+v", st.Totals())
	}
}

// TestRestoredAfterTheEnd: what cannot come back as a session ends, and does later, is
// counted when it does.
func TestRestoredAfterTheEnd(t *testing.T) {
	sys := newHost(t)
	add(t, sys, via("172.31.1.0/24", "192.168.1.66", eth0))
	var refuse atomic.Bool
	sys.Refuse = func(a plan.Action) error {
		if a.Kind == plan.Restore && refuse.Load() {
			return enforce.ErrNotNow
		}
		return nil
	}
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	refuse.Store(true)
	if st, err := e.Close(t.Context(), "tun0"); err != nil || st.Restored != 0 {
		t.Fatalf("%+v, %v", st.Totals(), err)
	}
	refuse.Store(false)
	e.Wake("test")
	eventually(t, "it is counted", func() bool { return totals(t, e, sys).Restored == 1 })
}

// TestDisplacingDeleteIsCounted: a delete that also took another route did delete.
func TestDisplacingDeleteIsCounted(t *testing.T) {
	for err, want := range map[error]bool{
		nil:                       true,
		errors.New("no"):          false,
		enforce.ErrAlready:        false,
		&enforce.DisplacedError{}: true,
		&enforce.DisplacedError{Result: enforce.ErrAlready}: false,
	} {
		if got := enforce.Changed(err); got != want {
			t.Errorf("%v: %t", err, got)
		}
	}
}
