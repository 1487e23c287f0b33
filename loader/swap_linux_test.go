package loader

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// inForce is all that packets are judged by.
func inForce(t *testing.T, w *Witness) string {
	t.Helper()
	var v4, v6 ebpf.MapID
	if err := errors.Join(w.objs.Policies4.Lookup(uint32(0), &v4), w.objs.Policies6.Lookup(uint32(0), &v6)); err != nil {
		t.Fatal(err)
	}
	deadlines, err := w.deadlines()
	if err != nil {
		t.Fatal(err)
	}
	known := map[uint32]uint32{}
	var index, bits uint32
	it := w.objs.Devices.Iterate()
	for it.Next(&index, &bits) {
		known[index] = bits
	}
	s := fmt.Sprint(v4, v6, deadlines)
	for _, i := range slices.Sorted(maps.Keys(known)) {
		s += fmt.Sprintf(" %d:%b", i, known[i])
	}
	return s
}

// TestSwapFails: whichever store fails, nothing has changed, for this process's own policy and for an adopted one; and the
// next Set is whole.
func TestSwapFails(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		t.Run(fmt.Sprintf("adopted %t", adopted), func(t *testing.T) { testSwapFails(t, adopted) })
	}
}

func testSwapFails(t *testing.T, adopted bool) {
	s := newStage(t, Options{NoSenders: true, noEarly: true, PinDir: pinDir(t)})
	first := Config{Prefixes: protect("10.9.0.0/24"), Action: Drop, Heartbeat: time.Hour}
	first.Prefixes[0].Exempt = []int{s.dev}
	set(t, s.w, first)
	if adopted {
		s.w.Close()
		s.w = s.host.open(s.w.opts)
	}
	second := Config{Prefixes: protect("10.9.0.0/16", "fd09::/64"), Action: Drop, Remaining: time.Minute}
	before, broken := inForce(t, s.w), errors.New("no room")
	stores := 0
	for fail := 1; ; fail++ {
		stores = 0
		s.w.put = func(m *ebpf.Map, key, value any) error {
			if stores++; stores == fail {
				return broken
			}
			return m.Put(key, value)
		}
		err := s.w.Set(second)
		if err == nil {
			break
		}
		if !errors.Is(err, broken) {
			t.Fatalf("store %d: %v", fail, err)
		}
		if got := inForce(t, s.w); got != before {
			t.Errorf("store %d failed, and in force is\n%s, before it was\n%s", fail, got, before)
		}
		if !adopted {
			if left := time.Until(s.status().Until); left < 50*time.Minute {
				t.Errorf("store %d failed, and the deadline is told to be %v from now", fail, left)
			}
		}
	}
	if stores != 3 {
		t.Errorf("%d stores of two families and the deadlines", stores)
	}
	if got := inForce(t, s.w); got == before {
		t.Error("the policy has not changed")
	}
}
