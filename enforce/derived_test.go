package enforce_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

const tun1 uint32 = 6

// newTwins is newHost with a second tunnel that has the same network as the first.
func newTwins(t *testing.T) *enforcetest.System {
	t.Helper()
	sys := newHost(t)
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: tun1, Name: "tun1", Up: true})
		return errors.Join(tb.AddAddress(tun1, pfx("10.8.0.3/24")), tb.Add(via("172.29.0.0/16", "", tun1), enforcetest.Append))
	})
	return sys
}

// hooked is what a VPN's hook tells: pushed routes, and the tunnel's own network.
func hooked(tunnel, pushed string) enforce.Session {
	own := prefixes("10.8.0.0/24")
	return enforce.Session{Tunnel: tunnel, Protect: append(prefixes(pushed), own...), Derived: own, Hook: true}
}

// sharing is what each session protects, and whether it says what it left to the other.
func sharing(t *testing.T, e *enforce.Enforcer) string {
	t.Helper()
	st, err := e.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, s := range st.Sessions {
		left := slices.ContainsFunc(s.Unenforceable, func(text string) bool {
			return strings.HasPrefix(text, "10.8.0.0/24 is this tunnel's own network, and the session on tun")
		})
		words = append(words, fmt.Sprintf("%s %s %v left %t", s.Tunnel, s.State, s.Protected, left))
	}
	return strings.Join(words, "; ")
}

// TestTwinNetworks: of two VPNs with the same network of their own the first has it,
// and what either pushes is protected. When the first ends the other has it.
func TestTwinNetworks(t *testing.T) {
	sys := newTwins(t)
	before := sys.Text()
	told := &policies{}
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{OnPolicy: told.take})
	open(t, e, hooked("tun0", "172.31.0.0/16"))
	open(t, e, hooked("tun1", "172.29.0.0/16"))
	want := "tun0 enforcing [10.8.0.0/24 172.31.0.0/16] left false; tun1 enforcing [172.29.0.0/16] left true"
	if got := sharing(t, e); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	told.mu.Lock()
	if list := told.last.Sessions; len(list) != 2 || !slices.Equal(list[1].Protect, prefixes("172.29.0.0/16")) {
		t.Errorf("those who watch packets are told of %+v", list)
	}
	told.mu.Unlock()
	open(t, e, hooked("tun1", "172.29.0.0/16")) // its hook again: route-up after up
	if got := sharing(t, e); got != want {
		t.Errorf("again: %s", got)
	}
	add(t, sys, via("172.29.5.0/24", "192.168.1.66", eth0))
	eventually(t, "what is pushed is protected", func() bool {
		return leavesBy(sys, "172.29.5.1") == tun1 && leavesBy(sys, "172.31.5.1") == tun0 && leavesBy(sys, "10.8.0.9") == tun0
	})
	if _, err := e.Close(t.Context(), "tun0"); err != nil {
		t.Fatal(err)
	}
	if got, want := sharing(t, e), "tun1 enforcing [10.8.0.0/24 172.29.0.0/16] left false"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := leavesBy(sys, "10.8.0.9"); got != tun1 {
		t.Errorf("its network is reached by %d:\n%s", got, sys.Text())
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if after := sys.Text(); sortLines(after) != sortLines(before) {
		t.Errorf("after\n%s\nbefore\n%s", after, before)
	}
}

func sortLines(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestAskedForComesFirst: what somebody asked for is theirs, whoever came first, and
// two that ask for the same are refused.
func TestAskedForComesFirst(t *testing.T) {
	asks := func(tunnel, list string) enforce.Session {
		return enforce.Session{Tunnel: tunnel, Protect: prefixes(list)}
	}
	excludes := asks("tun1", "172.29.0.0/16")
	excludes.Exclude = prefixes("10.8.0.0/24")
	for _, tt := range []struct {
		name          string
		first, second enforce.Session
		want          string
	}{
		{"after", hooked("tun0", "172.31.0.0/16"), asks("tun1", "10.8.0.0/24 172.29.0.0/16"),
			"tun0 enforcing [172.31.0.0/16] left true; tun1 enforcing [10.8.0.0/24 172.29.0.0/16] left false"},
		{"before", asks("tun1", "10.8.0.0/24 172.29.0.0/16"), hooked("tun0", "172.31.0.0/16"),
			"tun1 enforcing [10.8.0.0/24 172.29.0.0/16] left false; tun0 enforcing [172.31.0.0/16] left true"},
		{"excluded", hooked("tun0", "172.31.0.0/16"), excludes,
			"tun0 enforcing [172.31.0.0/16] left true; tun1 enforcing [172.29.0.0/16] left false"},
		{"both", asks("tun0", "10.8.0.0/24 172.31.0.0/16"), asks("tun1", "10.8.0.0/24 172.29.0.0/16"),
			"tun0 enforcing [10.8.0.0/24 172.31.0.0/16] left false"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, _ := run(t, newTwins(t), &enforcetest.Journal{}, enforce.Options{})
			open(t, e, tt.first)
			_, err := e.Open(context.Background(), tt.second)
			var input *enforce.InputError
			if refused := errors.As(err, &input) && input.Input == "10.8.0.0/24"; refused != (tt.name == "both") {
				t.Fatalf("opened: %v", err)
			}
			if got := sharing(t, e); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestTwinsAreReopened: a restart divides as before.
func TestTwinsAreReopened(t *testing.T) {
	sys, store := newTwins(t), &keptStore{}
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{Sessions: store})
	open(t, e, hooked("tun0", "172.31.0.0/16"))
	open(t, e, hooked("tun1", "172.29.0.0/16"))
	want := sharing(t, e)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	e, _ = run(t, sys, &enforcetest.Journal{}, enforce.Options{Sessions: store})
	if got := sharing(t, e); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
