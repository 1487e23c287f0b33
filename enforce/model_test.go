package enforce_test

import (
	"bytes"
	"flag"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

var (
	modelWorld    = flag.String("world", "", "the model's worlds to explore, by name, with commas; empty: all")
	modelDepth    = flag.Int("depth", 99, "how many operations follow one another at most")
	modelStates   = flag.Int("states", modelStatesAsAPart, "how many states of each world are judged at most")
	modelTime     = flag.Duration("time", 0, "how long each world is explored at most; 0: as long as it takes")
	modelMute     = flag.String("mute", "", "kinds of violations to pass over, with commas")
	modelTrace    = flag.String("trace", "", "a trace to replay in the world, with semicolons, in place of exploring (go test wants it behind -args)")
	modelVPNOrder = flag.Bool("vpn-order", false, "hold the VPN's own routes to their places among equals too")
)

// TestModel explores the worlds: every order of their operations, the shortest first. In
// none of the states that are reached may an invariant be broken.
func TestModel(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // states are many and short-lived
	for i := range worlds {
		w := &worlds[i]
		if *modelWorld != "" && !listed(*modelWorld, w.name) {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			if *modelTrace != "" {
				replay(t, w, *modelTrace)
				return
			}
			start := time.Now()
			x := explore(w, bounds{*modelStates, *modelDepth, *modelTime}, func(text string) bool { return listed(*modelMute, kindOf(text)) })
			more := ""
			if x.more {
				more = "+"
			}
			t.Logf("%-10s | %-60s | depth %d%s | %7d states | %8d transitions | %v", w.name, w.about, x.depth, more, x.states, x.transitions,
				time.Since(start).Round(time.Millisecond))
			tellWrong(t, w, x.wrong)
		})
	}
}

func listed(list, word string) bool { return slices.Contains(strings.Split(list, ","), word) }

// tellWrong tells of some violations of each kind, each by the shortest trace.
func tellWrong(t *testing.T, w *world, wrong []violation) {
	kinds := map[string]int{}
	for _, v := range wrong {
		if kind := kindOf(v.text); kinds[kind] < 4 {
			v = shortest(w, v)
			t.Errorf("%s\n    %s", v.trace, v.text)
		}
		kinds[kindOf(v.text)]++
	}
	if len(kinds) > 0 {
		t.Errorf("in all: %v", kinds)
	}
}

// TestModelTraces replays what was once wrong.
func TestModelTraces(t *testing.T) {
	for _, k := range modelTraces {
		t.Run(k.fault, func(t *testing.T) {
			w := worldNamed(k.world)
			if w == nil {
				t.Fatalf("there is no world %s", k.world)
			}
			m := newMachine(w)
			for _, op := range opsOf(k.trace) {
				if _, ok := m.attempt(op); !ok {
					t.Logf("%s: cannot be done", op)
				}
			}
			if wrong := m.judged(); len(wrong) > 0 {
				t.Errorf("%s\n    %s", k.trace, strings.Join(wrong, "\n    "))
			}
		})
	}
}

func worldNamed(name string) *world {
	for i := range worlds {
		if worlds[i].name == name {
			return &worlds[i]
		}
	}
	return nil
}

// replay shows a trace step by step.
func replay(t *testing.T, w *world, trace string) {
	m := newMachine(w)
	for _, op := range opsOf(trace) {
		died, ok := m.attempt(op)
		t.Logf("%s: done %v, died %v, fault %q\n%s", op, ok, died, m.fault, m.describe())
	}
	for _, wrong := range m.judged() {
		t.Error(wrong)
	}
	m.settle()
	t.Logf("at rest:\n%s", m.describe())
}

func (m *machine) describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table:\n%swithout culvert:\n%s", m.k.table.Text(), m.twin.Text())
	if m.s != nil {
		for _, h := range m.s.Held() {
			fmt.Fprintf(&b, "held: %+v\n", h)
		}
		for _, st := range m.s.Status().Sessions {
			fmt.Fprintf(&b, "session: %s %s %q removed %d readded %d restored %d\n", st.Tunnel, st.State, st.Error, st.Removed, st.Readded, st.Restored)
		}
	}
	fmt.Fprintf(&b, "%d announcements wait; done: %+v\n", len(m.k.queue), m.k.done)
	return b.String()
}

// TestModelStates: a state is what decides, not how it was reached, and a copy is as good
// as the way walked again. Else the model would judge one state many times, or many as one.
func TestModelStates(t *testing.T) {
	begin := newMachine(worldNamed("kinds"))
	m := begin.clone()
	for _, op := range opsOf("add:P9w ; open:s8 ; add:P9w ; add:P10w ; close:tun0 ; open:s8 ; close:tun0 ; del:P9w") {
		m.do(op)
		copied, again := m.clone(), m.clone()
		copied.do("open:s8")
		if !bytes.Equal(m.key(), again.key()) {
			t.Errorf("after %s a copy is not what it is a copy of, or is not independent", op)
		}
	}
	p10 := worldRoutes["P10w"]
	m.forgetRogue(m.routed(&p10), map[plan.Route]bool{})
	if !bytes.Equal(m.key(), begin.key()) {
		t.Errorf("what is undone leaves something:\n%q\n%q", m.key(), begin.key())
	}
}
