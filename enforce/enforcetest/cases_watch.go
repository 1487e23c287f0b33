package enforcetest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

func conformTableCancel(t *testing.T, l Lab) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var last error
	for _, err := range l.System.Table(ctx) {
		if last != nil {
			t.Fatal("table went on after its error")
		}
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("table under a canceled context ended with %v, want %v", last, context.Canceled)
	}
	for range l.System.Table(context.Background()) {
		break // a reader may stop early, and read again
	}
	l.table(t)
}

// conformChanging reads the table while others change it. A reading that ends
// without an error has every route that stood all the time, once.
func conformChanging(t *testing.T, l Lab) {
	for n := range 100 {
		l.add(t, Add, l.both(n, l.Links[0])...)
	}
	stop := l.churn(t)
	defer stop()
	for range 30 {
		routes, err := readTable(l.System)
		if err != nil {
			continue
		}
		count := map[plan.Slot]int{}
		for i := range routes {
			count[routes[i].Slot()]++
		}
		for n := range 100 {
			for _, r := range l.both(n, l.Links[0]) {
				if c := count[r.Slot()]; c != 1 {
					t.Fatalf("a reading has %s %d times", Text(r), c)
				}
			}
		}
	}
}

// churn adds and deletes routes until it is stopped.
func (l *Lab) churn(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var busy sync.WaitGroup
	busy.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			for _, r := range l.both(1000+n%200, l.Links[1]) {
				if err := errors.Join(l.Add(r, Add), l.Delete(r)); err != nil {
					t.Errorf("churn: %v", err)
					return
				}
			}
		}
	})
	return func() { cancel(); busy.Wait() }
}

func conformDirty(t *testing.T, l Lab) {
	link := l.Links[1]
	more := netip.MustParsePrefix("10.178.0.1/24")
	hop := plan.Hop{Link: link.Index, Via: link.Gate4}
	var made = l.both(1, l.Links[0])[0]
	steps := []struct {
		name string
		has  bool
		do   func() error
	}{
		{"address added", l.AddAddress != nil, func() error { return l.AddAddress(link.Index, more) }},
		{"address removed", l.RemoveAddress != nil, func() error { return l.RemoveAddress(link.Index, more) }},
		{"nexthop made", l.SetNexthop != nil, func() error { return l.SetNexthop(77, hop) }},
		{"nexthop replaced", l.SetNexthop != nil, func() error { return l.SetNexthop(77, plan.Hop{Link: link.Index}) }},
		{"nexthop deleted", l.DeleteNexthop != nil, func() error { return l.DeleteNexthop(77) }},
		{"rule added", l.AddRule != nil, func() error { return l.AddRule() }},
		{"link down", l.SetUp != nil, func() error { return l.SetUp(link.Index, false) }},
		{"link up", l.SetUp != nil, func() error { return l.SetUp(link.Index, true) }},
	}
	w := l.watch(t, func(enforce.Change, *plan.Route) enforce.Answer { return enforce.Answer{} })
	for _, s := range steps {
		if !s.has {
			continue
		}
		l.quiesce(t, w, &made)
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		select {
		case why := <-w.sink.DirtyC():
			t.Logf("%s: dirty, %s", s.name, why)
		case <-time.After(patience):
			t.Errorf("%s: not dirty", s.name)
		}
	}
	w.stop(t)
}

// quiesce waits until what happened before has been served, which a route
// that is announced after it proves, and takes the dirt that it left.
func (l *Lab) quiesce(t *testing.T, w *watcher, mark *plan.Route) {
	t.Helper()
	l.add(t, Add, *mark)
	eventually(t, "announcement of "+Text(*mark), func() bool { return w.saw(enforce.Added, *mark) })
	*mark = l.both(int(mark.Dst.Addr().As4()[3])+1, l.Links[0])[0]
	for drained := false; !drained; {
		select {
		case <-w.sink.DirtyC():
		case <-time.After(50 * time.Millisecond):
			drained = true
		}
	}
}

// conformOverrun tells more than the sink can hold while nobody takes it.
func conformOverrun(t *testing.T, l Lab) {
	w := l.watch(t, func(enforce.Change, *plan.Route) enforce.Answer { return enforce.Answer{Tell: true} })
	for w.sink.Lost() == 0 {
		w.sink.Tell(enforce.Event{})
	}
	<-w.sink.DirtyC()
	full := w.sink.Lost()
	l.addDelete(t, w, l.both(1, l.Links[0])[0])
	eventually(t, "an overrun", func() bool { return w.sink.Lost() >= full+2 })
	select {
	case <-w.sink.DirtyC():
	case <-time.After(patience):
		t.Error("events were lost and nothing is dirty")
	}
	w.stop(t)
}

func conformCancel(t *testing.T, l Lab) {
	for range 3 {
		w := l.watch(t, nil)
		w.stop(t)
	}
	r := l.both(1, l.Links[0])[0]
	w := l.watch(t, nil)
	l.add(t, Add, r)
	eventually(t, "announcement after watching again", func() bool { return w.saw(enforce.Added, r) })
	w.stop(t)
}

func conformFacts(t *testing.T, l Lab) {
	before, err := l.System.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []LabLink{l.Links[0], l.Links[1], l.Tunnel} {
		l.checkLink(t, before, want)
	}
	after := before
	if l.SetUp != nil {
		if err := l.SetUp(l.Links[1].Index, false); err != nil {
			t.Fatal(err)
		}
		after, err = l.System.Facts(t.Context())
		if got := linkOf(after, l.Links[1].Index); err != nil || got == nil || got.Up {
			t.Errorf("a link that is down: %+v, error %v", got, err)
		}
	}
	if after.Uptime < before.Uptime {
		t.Errorf("uptime went from %v to %v", before.Uptime, after.Uptime)
	}
}

func (l *Lab) checkLink(t *testing.T, f enforce.Facts, want LabLink) {
	t.Helper()
	got := linkOf(f, want.Index)
	if got == nil {
		t.Fatalf("%s is not listed", want.Name)
	}
	if got.Name != want.Name || !got.Up {
		t.Errorf("link %d is %q, up %v; want %q, up", want.Index, got.Name, got.Up, want.Name)
	}
	if want.Addr4.IsValid() && !slices.Contains(got.Addrs, want.Addr4) {
		t.Errorf("%s has %v, want %v among them", want.Name, got.Addrs, want.Addr4)
	}
	if l.Features.IPv6 && want.Addr6.IsValid() && !slices.Contains(got.Addrs, want.Addr6) {
		t.Errorf("%s has %v, want %v among them", want.Name, got.Addrs, want.Addr6)
	}
}

func linkOf(f enforce.Facts, index uint32) *plan.Link {
	i := slices.IndexFunc(f.Links, func(l plan.Link) bool { return l.Index == index })
	if i < 0 {
		return nil
	}
	return &f.Links[i]
}
