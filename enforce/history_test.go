package enforce_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// heardSystem is a System whose edge and sink the test can use as well.
type heardSystem struct {
	*enforcetest.System
	edge enforce.Edge
	sink *enforce.Sink
}

func (s *heardSystem) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	return s.System.Watch(ctx, edge, sink, func() { s.edge, s.sink = edge, sink; ready() })
}

// history is a host to which things happen in any order, with whoever enforces on it:
// processes that come and go, or are killed.
type history struct {
	t    *testing.T
	sys  *heardSystem
	j    *enforcetest.Journal
	e    *enforce.Enforcer
	stop func() error
	from enforcetest.Made // by processes before this one
	told *tales           // by this process
	late []enforce.Event  // counted, and not told yet
}

// tales is how many changes incidents tell of.
type tales struct{ removed, readded atomic.Uint64 }

func (h *history) start() {
	h.t.Helper()
	told := &tales{}
	h.from, h.told, h.late = h.sys.Made(), told, nil
	h.e, h.stop = run(h.t, h.sys, h.j, enforce.Options{Observe: func(in enforce.Incident) {
		switch in.What {
		case "removed":
			told.removed.Add(max(1, in.Count))
		case "readded":
			told.readded.Add(max(1, in.Count))
		}
	}})
}

// happenings are what a history is made of.
var happenings = []struct {
	name string
	do   func(h *history, r plan.Route)
}{
	{"add", func(h *history, r plan.Route) { h.others(enforcetest.Append, r) }},
	{"replace", func(h *history, r plan.Route) { h.others(enforcetest.Replace, r) }},
	{"delete", func(h *history, r plan.Route) {
		_ = h.sys.Do(4711, func(tb *enforcetest.Table) error { return tb.Delete(r) })
	}},
	{"rival", func(h *history, _ plan.Route) {
		h.others(enforcetest.Replace, via("172.31.0.0/16", "192.168.1.66", eth0))
	}},
	{"delete tunnel's", func(h *history, _ plan.Route) {
		_ = h.sys.Do(4711, func(tb *enforcetest.Table) error { return tb.Delete(via("172.31.0.0/16", "10.8.0.1", tun0)) })
	}},
	{"lose", func(h *history, _ plan.Route) { h.sys.Lose(1) }},
	{"overrun", func(h *history, _ plan.Route) { h.sys.Overrun(2) }},
	{"interrupt", func(h *history, _ plan.Route) { h.sys.Interrupt(1) }},
	{"delete late", func(h *history, r plan.Route) { h.answer(r) }},
	{"tell late", func(h *history, _ plan.Route) { h.tell() }},
	{"double", func(h *history, r plan.Route) {
		h.sys.sink.Tell(enforce.Event{Change: enforce.Added, Route: r, Answer: h.sys.edge(enforce.Added, &r), Idle: true, Seen: time.Now(), Done: time.Now()})
	}},
	{"open", func(h *history, _ plan.Route) { h.open(split) }},
	{"exclude", func(h *history, r plan.Route) {
		s := split
		s.Exclude = []netip.Prefix{r.Dst}
		h.open(s)
	}},
	{"less", func(h *history, _ plan.Route) {
		s := split
		s.Protect = []netip.Prefix{pfx("172.31.0.0/17")}
		h.open(s)
	}},
	{"full", func(h *history, _ plan.Route) { h.open(full) }},
	{"close", func(h *history, _ plan.Route) { _, _ = h.e.Close(h.t.Context(), "tun0") }},
	{"address", func(h *history, _ plan.Route) {
		_ = h.sys.Do(0, func(tb *enforcetest.Table) error {
			return errors.Join(tb.RemoveAddress(eth0, pfx("192.168.1.10/24")), tb.AddAddress(eth0, pfx("192.168.1.10/24")))
		})
	}},
	{"wake", func(h *history, _ plan.Route) { h.e.Wake("test") }},
	{"end", func(h *history, _ plan.Route) { h.exact(); _ = h.stop(); h.start() }},
	{"kill", func(h *history, _ plan.Route) {
		h.sys.Halt()
		h.j.Halt()
		_ = h.stop()
		h.sys.Resume()
		h.j.Resume()
		h.start()
	}},
}

func (h *history) others(how enforcetest.How, r plan.Route) {
	_ = h.sys.Do(4711, func(tb *enforcetest.Table) error { return tb.Add(r, how) })
}

func (h *history) open(s enforce.Session) {
	if _, err := h.e.Open(h.t.Context(), s); err != nil {
		h.t.Error(err)
	}
}

// answer is the edge path of a System that tells later what it did.
func (h *history) answer(r plan.Route) {
	h.sys.Lose(1)
	if h.sys.Do(4711, func(tb *enforcetest.Table) error { return tb.Add(r, enforcetest.Append) }) != nil {
		return
	}
	now := time.Now()
	ev := enforce.Event{Change: enforce.Added, Route: r, Answer: h.sys.edge(enforce.Added, &r), Seen: now, Done: now}
	ev.Answer.Put = nil // that the tunnel's route stands is not what this is about
	if !ev.Answer.Delete {
		return
	}
	err := h.sys.Apply(context.Background(), []plan.Action{{Kind: plan.Remove, Route: r, Verdict: ev.Answer.Verdict}})[0]
	ev.Removed, ev.Idle = err == nil, err != nil
	h.sys.sink.Count(&ev)
	h.late = append(h.late, ev)
}

func (h *history) tell() {
	for _, ev := range h.late {
		h.sys.sink.Tell(ev)
	}
	h.late = nil
}

// exact waits until what is counted and told is what the table's own changes came to.
func (h *history) exact() {
	h.t.Helper()
	h.tell()
	var all enforce.Totals
	var made enforcetest.Made
	exact := func() bool {
		st, err := h.e.Status(h.t.Context())
		if err != nil {
			h.t.Fatal(err)
		}
		all, made = st.Totals, h.sys.Made()
		for _, s := range st.Sessions {
			if one := s.Totals(); one.Removed > all.Removed || one.Readded > all.Readded || one.Restored > all.Restored || one.Withdrawn > all.Withdrawn {
				h.t.Fatalf("a session's %+v of all %+v", one, all)
			}
		}
		return all.Removed+all.Withdrawn == uint64(made.Deleted-h.from.Deleted) && all.Readded+all.Restored == uint64(made.Added-h.from.Added) &&
			h.told.removed.Load() == all.Removed && h.told.readded.Load() <= all.Readded
	}
	for end := time.Now().Add(20 * time.Second); !exact(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("counted %+v; the table's changes are %+v, %+v of them before; told of %d removed and %d put back",
				all, made, h.from, h.told.removed.Load(), h.told.readded.Load())
		}
	}
}

// TestNumbersOfAnyHistory: whatever happens, in whatever order, with news that is lost,
// late or doubled, sessions that come and go and processes that are killed: what the
// status counts, what incidents tell of and what the table itself counts of our changes
// are the same.
func TestNumbersOfAnyHistory(t *testing.T) {
	histories, steps := 150, 30
	if raceEnabled || testing.Short() {
		histories = 25
	}
	for seed := range uint64(histories) {
		rng := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // a test's
		h := &history{t: t, sys: &heardSystem{System: newHost(t)}, j: &enforcetest.Journal{}}
		h.start()
		var names []string
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			h.t = t
			for range steps {
				what := happenings[rng.IntN(len(happenings))]
				r := via(fmt.Sprintf("172.31.%d.0/24", 64*rng.IntN(4)), "192.168.1.66", eth0)
				r.Metric = uint32(rng.IntN(2) * 100) //nolint:gosec // small
				names = append(names, what.name+" "+r.Dst.String())
				what.do(h, r)
			}
			h.exact()
			if t.Failed() {
				t.Logf("history: %q", names)
			}
		})
		if err := h.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("history %d: %q", seed, slices.Clone(names))
			return
		}
	}
}
