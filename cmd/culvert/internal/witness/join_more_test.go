package witness

import (
	"context"
	"net/netip"
	"testing"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/loader"
)

// TestReportReadsAnew: a report has what was counted until it was asked for, by the tunnel whose prefix it is.
func TestReportReadsAnew(t *testing.T) {
	p := &fakeProbe{}
	j, _ := joined(t, p, Rules{})
	j.Protect(sessions(protected("tun0", 7, "10.0.0.0/8")))
	var id uint32
	p.mu.Lock()
	for _, x := range p.sets[len(p.sets)-1].Prefixes {
		if x.Prefix == netip.MustParsePrefix("10.0.0.0/8") {
			id = x.ID
		}
	}
	p.mu.Unlock()
	for n := uint64(1); n < 4; n++ {
		p.mu.Lock()
		p.counters = []loader.Counter{{Interface: 2, Prefix: id, Reason: loader.LeakProtected, Packets: n, Bytes: 100 * n}}
		p.mu.Unlock()
		st, err := j.Report(t.Context(), enforce.Status{Sessions: []enforce.SessionStatus{{Tunnel: "tun0"}, {Tunnel: "tun1"}}})
		if err != nil || st.Leaks.Packets != n || st.Sessions[0].Leaks.Packets != n || st.Sessions[1].Leaks.Packets != 0 {
			t.Fatalf("%d were counted; the report has %+v, %v", n, st.Leaks, err)
		}
		if by := st.Sessions[0].Leaks.By; len(by) != 1 || by[0].Prefix != "10.0.0.0/8" || by[0].Tunnel != "tun0" {
			t.Errorf("the finding is %+v", by)
		}
	}
}

// TestMissedIsTold: what found no room is counted, and nobody waits.
func TestMissedIsTold(t *testing.T) {
	j := New(Options{Probe: &fakeProbe{}, System: &fakeSystem{}})
	for range incidentsWaiting + 3 {
		j.Observe(enforce.Incident{})
	}
	if got := j.state().Lost; got != 3 {
		t.Errorf("%d were lost", got)
	}
}

// TestWatchersLeave: whoever has gone takes no place in the feed.
func TestWatchersLeave(t *testing.T) {
	j, _ := joined(t, &fakeProbe{}, Rules{})
	watchers := func(want int) func() bool {
		return func() bool {
			n := -1
			_ = j.do(context.Background(), func(context.Context) { n = len(j.feed) })
			return n == want
		}
	}
	for range subscribers + 2 {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- j.Watch(ctx, func(report.Event) error { return nil }) }()
		eventually(t, "it watches", watchers(1))
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		eventually(t, "it has left", watchers(0))
	}
}

// TestJoinEnds: once it has ended whoever asks is told so, and the probe is closed.
func TestJoinEnds(t *testing.T) {
	p := &fakeProbe{samples: make(chan loader.Sample)}
	j := New(Options{Probe: p, System: &fakeSystem{}, Wake: func(string) {}})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := j.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Report(context.Background(), enforce.Status{}); err == nil {
		t.Error("a witness that has ended reports")
	}
	if err := j.Watch(context.Background(), func(report.Event) error { return nil }); err == nil {
		t.Error("a witness that has ended can be watched")
	}
	if err := j.Close(); err != nil || !p.closed {
		t.Errorf("closed %t, %v", p.closed, err)
	}
}
