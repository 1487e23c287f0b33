package enforce_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
)

// TestFullTunnelNeedsAServer: it is refused without, unless its own settings tell;
// a split tunnel is asked nothing.
func TestFullTunnelNeedsAServer(t *testing.T) {
	sys := newHost(t)
	var knows atomic.Pointer[enforce.Server]
	var asked atomic.Int32
	opt := enforce.Options{Endpoints: func(_ context.Context, tunnel string) ([]enforce.Server, error) {
		asked.Add(1)
		if srv := knows.Load(); srv != nil && tunnel == "tun0" {
			return []enforce.Server{*srv}, nil
		}
		return nil, nil
	}}
	e, _ := run(t, sys, &enforcetest.Journal{}, opt)
	nameless := enforce.Session{Tunnel: "tun0", Protect: full.Protect}
	open(t, e, enforce.Session{Tunnel: "tun0", Protect: split.Protect})
	if n := asked.Load(); n != 0 {
		t.Errorf("a split tunnel was asked %d times", n)
	}
	_, err := e.Open(t.Context(), nameless) // an open session may grow
	var input *enforce.InputError
	if !errors.As(err, &input) || !strings.Contains(err.Error(), "tun0: is a full tunnel, and needs --server ADDR:PORT/udp") {
		t.Errorf("nobody knows a server: %v", err)
	}
	knows.Store(&enforce.Server{Addr: netip.MustParseAddrPort("198.51.100.7:51820"), Proto: "udp"})
	if st := open(t, e, nameless); st.State != enforce.Enforcing {
		t.Errorf("its settings know one: %+v", st)
	}
	if by := leavesBy(sys, "198.51.100.7"); by != eth0 {
		t.Errorf("the way to the server is link %d", by)
	}
}

// TestServersAreAskedAtRestart: the endpoint may have moved while nobody watched; no
// answer leaves what was known.
func TestServersAreAskedAtRestart(t *testing.T) {
	for _, to := range []string{"203.0.113.9:51820", ""} {
		sys, journal := newHost(t), openJournal(t, t.TempDir(), enforce.Binding{})
		at := "198.51.100.7:51820"
		opt := enforce.Options{Sessions: journal, Endpoints: func(context.Context, string) ([]enforce.Server, error) {
			if at == "" {
				return nil, errors.New("no answer")
			}
			return []enforce.Server{{Addr: netip.MustParseAddrPort(at), Proto: "udp"}}, nil
		}}
		e, stop := run(t, sys, journal, opt)
		open(t, e, enforce.Session{Tunnel: "tun0", Protect: full.Protect})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		want := "198.51.100.7"
		if at = to; to != "" {
			want = "203.0.113.9"
		}
		e, stop = run(t, sys, journal, opt)
		if st := status(t, e); st.State != enforce.Enforcing || leavesBy(sys, want) != eth0 {
			t.Errorf("moved to %q: %+v, and %s leaves by %d", to, st, want, leavesBy(sys, want))
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
}
