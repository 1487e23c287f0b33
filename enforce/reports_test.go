package enforce

import (
	"fmt"
	"testing"
)

// TestReportsOfAReading: what stands is told of once, in a reading and in those after
// it, until it was away; beyond so many of one reading they are told of together.
func TestReportsOfAReading(t *testing.T) {
	var r reports
	for i, want := range []bool{true, false} {
		if got := r.isNew("a"); got != want {
			t.Errorf("%d times before the first reading: %t", i+1, got)
		}
	}
	r.begin()
	if r.isNew("a") {
		t.Error("it stands still, and is told of anew")
	}
	r.begin() // it is not there
	if r.begin(); !r.isNew("a") || r.isNew("a") {
		t.Error("it came again, and is not told of once")
	}
	r.begin()
	told := 0
	for i := range reportsAtOnce + 5 {
		if r.isNew(fmt.Sprint(i)) {
			told++
		}
	}
	if told != reportsAtOnce || r.untold != 5 || r.words != fmt.Sprint(reportsAtOnce) {
		t.Errorf("%d told, %d more like %q", told, r.untold, r.words)
	}
	r.begin()
	if r.isNew("1") || r.isNew(fmt.Sprint(reportsAtOnce)) || r.untold != 0 {
		t.Error("what was told of together is told of anew")
	}
}
