package witness

import (
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
)

// TestLostIsToldOnce: how many lines a slow reader lost is told before the next one, and not again.
func TestLostIsToldOnce(t *testing.T) {
	f := feed{}
	s, err := f.join()
	if err != nil {
		t.Fatal(err)
	}
	f.tell(make([]report.Event, eventsQueued+3))
	for range eventsQueued {
		<-s.events
	}
	f.tell([]report.Event{{Kind: "leak"}, {Kind: "incident"}})
	var kinds []string
	for range len(s.events) {
		kinds = append(kinds, (<-s.events).Kind)
	}
	if len(kinds) != 3 || kinds[0] != "lost" || kinds[1] != "leak" || kinds[2] != "incident" {
		t.Errorf("told %v", kinds)
	}
}

// TestWakerPauses: at the very end of a pause a leak wakes again, and after a quiet time the pauses begin anew.
func TestWakerPauses(t *testing.T) {
	route, tied := aSample(), aSample()
	tied.Bound = 2
	var w waker
	now := start
	if !w.due(&route, now) || !w.due(&route, now.Add(firstPause)) {
		t.Error("the first pause ends with its last moment")
	}
	if w = (waker{}); !w.due(&route, now) || !w.due(&tied, now.Add(lastPause)) {
		t.Error("so does the longest, for what asked no route")
	}
	for range 20 { // the pauses grow to the longest
		now = now.Add(lastPause)
		w.due(&route, now)
	}
	if w.pause != lastPause {
		t.Fatalf("the pause is %v", w.pause)
	}
	now = now.Add(2 * lastPause)
	if !w.due(&route, now) || !w.due(&route, now.Add(firstPause)) {
		t.Error("after a quiet time a leak waits as long as before")
	}
	if w.due(&route, now.Add(firstPause+time.Millisecond)) {
		t.Error("there is no pause any more")
	}
}
