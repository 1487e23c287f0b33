package enforce_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// TestExposedSinceTheReplacement: a route by a nexthop object leads outside once
// the object is replaced. It is exposed since that was announced, not since the
// table had been read.
func TestExposedSinceTheReplacement(t *testing.T) {
	sys := newHost(t)
	const object = 7
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.SetNexthop(object, plan.Hop{Link: tun0})
		return tb.Add(plan.Route{Dst: pfx("172.31.7.0/24"), NexthopID: object, Protocol: 4}, enforcetest.Append)
	})
	var replaced atomic.Bool
	var readings atomic.Int64
	began := make(chan time.Time, 1)
	sys.Dumping = func(n int) {
		if n == 0 {
			readings.Add(1)
		}
		if replaced.Load() {
			select {
			case began <- time.Now():
			default:
			}
		}
	}
	found := make(chan enforce.Incident, 16)
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{Observe: func(in enforce.Incident) { found <- in }})
	defer func() { _ = stop() }()
	open(t, e, split)
	eventually(t, "nothing is read any more", func() bool {
		before := readings.Load()
		time.Sleep(10 * 20 * time.Millisecond) // ten times the pause between readings
		return readings.Load() == before
	})
	do(t, sys, 4711, func(tb *enforcetest.Table) error {
		replaced.Store(true)
		tb.SetNexthop(object, plan.Hop{Link: eth0})
		return nil
	})
	select {
	case in := <-found:
		if read := <-began; in.What != "removed" || in.Seen.After(read) {
			t.Errorf("%s %s is exposed since %v, the table was read from %v on", in.What, in.Route, in.Seen, read)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the route was not removed")
	}
}
