package witness

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/loader"
)

// joined runs a join on a fake probe, nil for none, until the end of the test.
func joined(t *testing.T, p *fakeProbe, want Rules) (*Join, *atomic.Int64) {
	t.Helper()
	var woken atomic.Int64
	opt := Options{Reason: "a test", Rules: want, System: &fakeSystem{}, Wake: func(string) { woken.Add(1) }, End: func(string) {}}
	if p != nil {
		p.samples = make(chan loader.Sample)
		opt.Probe = p
	}
	j := New(opt)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, j.Close()); err != nil {
			t.Error(err)
		}
	})
	return j, &woken
}

func aSample() loader.Sample {
	return loader.Sample{Time: time.Now(), Interface: 2, Prefix: 9, Reason: loader.LeakProtected, Origin: loader.Socket, PID: 1,
		Comm: "curl", Destination: netip.MustParseAddrPort("172.31.1.10:80"), Segments: 1}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// TestJoinWakes: at the first leak, and not at each of a flood.
func TestJoinWakes(t *testing.T) {
	p := &fakeProbe{}
	_, woken := joined(t, p, Rules{})
	exempt := aSample()
	exempt.Reason = loader.ExemptND
	p.samples <- exempt
	p.samples <- exempt
	if n := woken.Load(); n != 0 {
		t.Errorf("woken %d times by what is no leak", n)
	}
	p.samples <- aSample()
	eventually(t, "woken", func() bool { return woken.Load() == 1 })
	for range 5000 {
		p.samples <- aSample()
	}
	if n := woken.Load(); n > 20 {
		t.Errorf("woken %d times by one flood", n)
	}
}

func TestWaker(t *testing.T) {
	var w waker
	now := start
	route, tied := aSample(), aSample()
	tied.Bound = 2
	step := func(d time.Duration, s *loader.Sample, want bool) {
		t.Helper()
		if now = now.Add(d); w.due(s, now) != want {
			t.Errorf("after %v, %v: not %t", now.Sub(start), d, want)
		}
	}
	step(0, &route, true)
	step(time.Millisecond, &route, false)
	step(firstPause, &route, true)
	step(firstPause, &route, false)
	step(firstPause, &tied, false)
	step(lastPause, &tied, true)
	step(time.Second, &tied, false)
	step(3*lastPause, &route, true)
}

// TestJoinTells: leaks and incidents come out of the feed with their counts, and
// the report has them.
func TestJoinTells(t *testing.T) {
	p := &fakeProbe{}
	j, _ := joined(t, p, Rules{Drop: true})
	ctx, cancel := context.WithCancel(context.Background())
	events := make(chan report.Event, 16)
	watching := make(chan error, 1)
	go func() { watching <- j.Watch(ctx, func(ev report.Event) error { events <- ev; return nil }) }()
	eventually(t, "a watcher", func() bool {
		n := 0
		_ = j.do(ctx, func(context.Context) { n = len(j.feed) })
		return n == 1
	})
	s := aSample()
	s.Bound = 2
	p.mu.Lock()
	p.counters = []loader.Counter{{Interface: 2, Prefix: 9, Reason: loader.LeakProtected, Packets: 4, Bytes: 400, Dropped: 4}}
	p.senders = []loader.Sender{{Interface: 2, Prefix: 9, Reason: loader.LeakProtected, Origin: loader.Socket, PID: 1, Comm: "curl", Bound: 2,
		Packets: 4, Bytes: 400, Dropped: 4, To: s.Destination, First: s.Time, Last: s.Time}}
	p.mu.Unlock()
	p.samples <- s
	in := enforce.Incident{ID: 1, Tunnel: "tun0", What: "removed", Route: "172.31.1.0/24 dev eth0", Seen: time.Now(), Gone: time.Now()}
	j.Observe(in)
	var kinds []string
	for range 2 {
		select {
		case ev := <-events:
			kinds = append(kinds, ev.Kind)
			if ev.Leak != nil && (ev.Leak.Packets != 4 || ev.Leak.Mechanism != report.Bound || ev.Leak.Cgroup != "/init.scope") {
				t.Errorf("the leak is %+v", ev.Leak)
			}
			if ev.Incident != nil && (ev.Incident.Exposure == nil || ev.Incident.Packets != 0) {
				t.Errorf("the incident is %+v", ev.Incident)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("only %v were told", kinds)
		}
	}
	st, err := j.Report(ctx, enforce.Status{Sessions: []enforce.SessionStatus{{Tunnel: "tun0", State: enforce.Enforcing}}, Incidents: []enforce.Incident{in, {ID: 99}}})
	if err != nil || st.Leaks.Packets != 4 || st.Leaks.Dropped != 4 || st.Incidents[0].Exposure == nil || st.Incidents[1].Exposure != nil || st.Witness.Mode != report.Drop {
		t.Errorf("the report is %+v, %v", st, err)
	}
	cancel()
	if err := <-watching; err != nil {
		t.Error(err)
	}
}

// TestJoinWithoutProbe: incidents are told, and nothing is said to be measured.
func TestJoinWithoutProbe(t *testing.T) {
	j, _ := joined(t, nil, Rules{})
	j.Protect(enforce.Protection{})
	j.Begin()
	events := make(chan report.Event, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = j.Watch(ctx, func(ev report.Event) error { events <- ev; return nil }) }()
	eventually(t, "a watcher", func() bool {
		n := 0
		_ = j.do(ctx, func(context.Context) { n = len(j.feed) })
		return n == 1
	})
	j.Observe(enforce.Incident{ID: 1, What: "removed"})
	if ev := <-events; ev.Incident == nil || ev.Incident.Exposure != nil {
		t.Errorf("told %+v", ev)
	}
	st, err := j.Report(ctx, enforce.Status{Sessions: []enforce.SessionStatus{{}}, Incidents: []enforce.Incident{{ID: 1}}})
	if err != nil || st.Leaks != nil || st.Sessions[0].Leaks != nil || st.Incidents[0].Exposure != nil || st.Witness.Reason != "a test" {
		t.Errorf("the report is %+v, %v", st, err)
	}
	if j.Freeze(true) || j.Forget("tun0") {
		t.Error("there is nothing to freeze or to forget")
	}
}

// TestJoinFailsSessions: a session whose leaks should be stopped and are not is
// no protected one.
func TestJoinFailsSessions(t *testing.T) {
	for _, drop := range []bool{false, true} {
		p := &fakeProbe{fail: errors.New("no memory")}
		j, _ := joined(t, p, Rules{Drop: drop})
		j.Protect(sessions(protected("tun0", 7, "10.0.0.0/8")))
		st, err := j.Report(context.Background(), enforce.Status{Sessions: []enforce.SessionStatus{{Tunnel: "tun0", State: enforce.Enforcing}}})
		if err != nil {
			t.Fatal(err)
		}
		failed := st.Sessions[0].State == enforce.Failed && strings.Contains(st.Sessions[0].Error, "no memory")
		if failed != drop || !strings.Contains(st.Witness.Error, "no memory") {
			t.Errorf("drop %t: %+v, %+v", drop, st.Sessions[0].SessionStatus, st.Witness)
		}
		p.mu.Lock()
		p.fail = nil
		p.mu.Unlock()
	}
}

func TestFeedIsBounded(t *testing.T) {
	f := feed{}
	var slow *subscriber
	for range subscribers {
		s, err := f.join()
		if err != nil {
			t.Fatal(err)
		}
		slow = s
	}
	if _, err := f.join(); !errors.Is(err, errCrowded) {
		t.Errorf("one too many: %v", err)
	}
	f.tell(make([]report.Event, eventsQueued+7))
	for range 2 {
		<-slow.events
	}
	f.tell(make([]report.Event, 1))
	n := len(slow.events)
	for range n - 2 {
		<-slow.events
	}
	if ev := <-slow.events; ev.Kind != "lost" || ev.Lost != 7 {
		t.Errorf("the reader is told %+v", ev)
	}
	f.leave(slow)
	if _, err := f.join(); err != nil {
		t.Errorf("after one has left: %v", err)
	}
}

// TestJoinSaysWhatLacks: a probe that drops, but not as it was asked, is said to.
func TestJoinSaysWhatLacks(t *testing.T) {
	for _, tt := range []struct {
		name   string
		want   Rules
		status loader.Status
		says   string
	}{
		{"not pinned", Rules{Guard: true}, loader.Status{Unpinned: "read-only"}, "not pinned, drops end with the daemon: read-only"},
		{"not pinned, nobody asked", Rules{}, loader.Status{Unpinned: "read-only"}, ""},
		{"an interface", Rules{Drop: true}, loader.Status{Interfaces: []loader.Interface{{Name: "eth0", Err: errors.New("full")}}}, "eth0: full"},
		{"all is well", Rules{Drop: true}, loader.Status{Interfaces: []loader.Interface{{Name: "eth0", Mode: loader.ModeTCX}}}, ""},
	} {
		p := &fakeProbe{status: tt.status}
		j, _ := joined(t, p, tt.want)
		j.Protect(sessions(protected("tun0", 7, "10.0.0.0/8")))
		st, err := j.Report(context.Background(), enforce.Status{})
		if err != nil || st.Witness.Error != tt.says {
			t.Errorf("%s: %q, %v", tt.name, st.Witness.Error, err)
		}
		if stays := j.Freeze(true); stays != (tt.want.Guard && tt.says == "") {
			t.Errorf("%s: the guard is said to stay: %t", tt.name, stays)
		}
	}
}
