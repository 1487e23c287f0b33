package enforce_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

func prefixes(list string) (out []netip.Prefix) {
	for _, p := range strings.Fields(list) {
		out = append(out, pfx(p))
	}
	return out
}

func server(s string) enforce.Server {
	return enforce.Server{Addr: netip.MustParseAddrPort(s), Proto: "udp"}
}

// said is what a configuration says of tun0, and told what a hook told.
var said = enforce.Session{
	Tunnel: "tun0", Protect: prefixes("172.31.0.0/16 10.5.0.0/16"), Exclude: prefixes("172.31.7.0/24"), Rearm: true,
	ExcludeInterfaces: []string{"docker*"}, Servers: []enforce.Server{server("203.0.113.9:1194")}, OtherTable: prefixes("10.5.0.0/16"),
	ServerFrom: []string{"uid:0"},
}

var told = enforce.Session{
	Tunnel: "tun0", Protect: prefixes("172.31.0.0/16 172.31.7.0/24 fd31::/32"), Exclude: prefixes("10.5.0.0/16 198.18.0.0/15"), Hook: true,
	ExcludeInterfaces: []string{"br0"}, Servers: []enforce.Server{server("198.51.100.7:1194"), server("203.0.113.9:1194")},
	ServerFrom: []string{"uid:65534", "uid:0"},
}

func TestJoin(t *testing.T) {
	got := enforce.Join(said, told)
	want := enforce.Session{
		Tunnel: "tun0", Protect: prefixes("10.5.0.0/16 172.31.0.0/16 fd31::/32"), Exclude: prefixes("172.31.7.0/24 198.18.0.0/15"), Rearm: true, Hook: true,
		ExcludeInterfaces: []string{"docker*", "br0"}, Servers: []enforce.Server{server("203.0.113.9:1194"), server("198.51.100.7:1194")}, OtherTable: prefixes("10.5.0.0/16"),
		ServerFrom: []string{"uid:0", "uid:65534"},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// wishes are the open sessions in few words.
func wishes(t *testing.T, e *enforce.Enforcer) string {
	t.Helper()
	all, err := e.Sessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, s := range all {
		words = append(words, fmt.Sprint(s.Tunnel, s.Protect, s.Exclude, s.ExcludeInterfaces, s.Servers))
	}
	return strings.Join(words, "; ")
}

// TestHookKeepsTheConfiguration: what the file says of a tunnel holds while a hook
// has told of a connection, and is all that holds after it, for the next.
func TestHookKeepsTheConfiguration(t *testing.T) {
	for _, end := range []string{"hook", "vanished", "guard"} {
		t.Run(end, func(t *testing.T) {
			sys, journal := newHost(t), &enforcetest.Journal{}
			onLoss := enforce.LossRestore
			if end == "guard" {
				onLoss = enforce.LossGuard
			}
			own := said
			own.OtherTable = nil // no rule leads to a table of the VPN's own here
			e, stop := run(t, sys, journal, enforce.Options{Own: []enforce.Session{own}, OnLoss: onLoss})
			alone := wishes(t, e)
			st := open(t, e, told)
			joined := wishes(t, e)
			if want := "tun0[10.5.0.0/16 172.31.0.0/16 fd31::/32] [172.31.7.0/24 198.18.0.0/15] [docker* br0] [203.0.113.9:1194/udp 198.51.100.7:1194/udp]"; joined != want {
				t.Errorf("with the hook %s, want %s", joined, want)
			}
			if st.State != enforce.Enforcing {
				t.Errorf("%+v", st)
			}
			if end != "hook" {
				do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.DeleteLink(tun0) })
			}
			switch end {
			case "vanished":
				eventually(t, "what the hook told is forgotten", func() bool { return wishes(t, e) == alone })
			case "guard":
				eventually(t, "the guard holds", func() bool { return status(t, e).State == enforce.Reconnecting })
				if got := wishes(t, e); got != joined {
					t.Errorf("guarded: %s, want %s", got, joined)
				}
				if _, err := e.Leave(t.Context(), "tun0"); err != nil {
					t.Error(err)
				}
			case "hook":
				if _, err := e.Leave(t.Context(), "tun0"); err != nil {
					t.Error(err)
				}
				if got := wishes(t, e); got != "" { // until the tunnel is gone
					t.Errorf("after the end: %s", got)
				}
				do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.DeleteLink(tun0) })
			}
			eventually(t, "it waits for the tunnel again", func() bool { return wishes(t, e) == alone })
			addTunnel(t, sys)
			eventually(t, "it enforces again", func() bool { return status(t, e).State == enforce.Enforcing })
			open(t, e, told)
			if got := wishes(t, e); got != joined {
				t.Errorf("the next connection: %s, want %s", got, joined)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestJoinOutlivesTheProcess: after a restart what the hook told is known, and the
// configuration's part is as the file says it then.
func TestJoinOutlivesTheProcess(t *testing.T) {
	sys, journal := newHost(t), openJournal(t, t.TempDir(), here)
	e, stop := run(t, sys, journal, enforce.Options{Own: []enforce.Session{said}, Sessions: journal})
	open(t, e, told)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	other := said
	other.Exclude = prefixes("172.31.8.0/24")
	e, stop = run(t, sys, journal, enforce.Options{Own: []enforce.Session{other}, Sessions: journal})
	want := "tun0[10.5.0.0/16 172.31.0.0/16 172.31.7.0/24 fd31::/32] [172.31.8.0/24 198.18.0.0/15]"
	if got := wishes(t, e); !strings.HasPrefix(got, want) {
		t.Errorf("%s, want %s", got, want)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestReload: all of it or nothing, and nothing that stays is let go of.
func TestReload(t *testing.T) {
	sys, journal := newHost(t), &enforcetest.Journal{}
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		return tb.Add(via("172.31.1.0/24", "192.168.1.66", eth0), enforcetest.Add)
	})
	exposed := false // whether 172.31.0.0/16 was ever protected by nobody
	own := func(tunnel, protect string) enforce.Session {
		return enforce.Session{Tunnel: tunnel, Protect: prefixes(protect), Rearm: true}
	}
	watch := func(p enforce.Protection) {
		held := false
		for _, s := range p.Sessions {
			for _, x := range s.Protect {
				held = held || x == pfx("172.31.0.0/16")
			}
		}
		exposed = exposed || !held
	}
	e, _ := run(t, sys, journal, enforce.Options{
		Own:      []enforce.Session{own("tun0", "172.31.0.0/16"), own("wg0", "10.9.0.0/16")},
		OnPolicy: watch,
	})
	eventually(t, "the tunnel is enforced", func() bool {
		st, err := e.Status(t.Context())
		return err == nil && st.Sessions[0].State == enforce.Enforcing
	})
	held := func() int { st, _ := e.Status(t.Context()); return len(st.Sessions[0].Held) }
	if held() != 1 {
		t.Fatalf("%d routes held", held())
	}
	exposed = false
	before := wishes(t, e)

	for name, bad := range map[string][]enforce.Session{
		"host bits":        {own("tun0", "172.31.0.0/16"), own("wg0", "10.9.0.1/16")},
		"nothing":          {own("tun0", "172.31.0.0/16"), own("wg1", "")},
		"two of the same":  {own("tun0", "172.31.0.0/16"), own("wg1", "172.31.0.0/16")},
		"a bad interface":  {{Tunnel: "tun0", Protect: prefixes("172.31.0.0/16"), ExcludeInterfaces: []string{"["}, Rearm: true}},
		"no good pinholes": {own("tun0", "172.31.0.0/16 127.0.0.0/8")},
	} {
		_, err := e.Reload(t.Context(), bad)
		var input *enforce.InputError
		if !errors.As(err, &input) {
			t.Errorf("%s: %v", name, err)
		}
		if got := wishes(t, e); got != before {
			t.Errorf("%s: refused, but now there is %s", name, got)
		}
	}

	done, err := e.Reload(t.Context(), []enforce.Session{own("tun0", "172.31.0.0/16 10.5.0.0/16"), own("tun7", "10.7.0.0/16")})
	if got, want := fmt.Sprint(done, err), "{[tun7] [tun0] [wg0] []} <nil>"; got != want {
		t.Errorf("reloaded %s, want %s", got, want)
	}
	if got, want := wishes(t, e), "tun0[10.5.0.0/16 172.31.0.0/16] [] [] []; tun7[10.7.0.0/16] [] [] []"; got != want {
		t.Errorf("reloaded to %s, want %s", got, want)
	}
	if exposed || held() != 1 {
		t.Errorf("a gap: policy %t, %d routes held", exposed, held())
	}
	done, err = e.Reload(t.Context(), []enforce.Session{own("tun0", "172.31.0.0/16 10.5.0.0/16"), own("tun7", "10.7.0.0/16")})
	if got, want := fmt.Sprint(done, err), "{[] [] [] [tun0 tun7]} <nil>"; got != want {
		t.Errorf("the same again %s, want %s", got, want)
	}
}

// TestRefusedReload: what a refused file says is not what a hook is joined with.
func TestRefusedReload(t *testing.T) {
	sys := newHost(t)
	own := said
	own.OtherTable = nil // no rule leads to a table of the VPN's own here
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{Own: []enforce.Session{own}})
	other := own
	other.ExcludeInterfaces = nil
	if _, err := e.Reload(t.Context(), []enforce.Session{other, {Tunnel: "wg1", Rearm: true}}); err == nil {
		t.Fatal("a session that protects nothing was taken")
	}
	open(t, e, told)
	if got := wishes(t, e); !strings.Contains(got, "docker*") {
		t.Errorf("joined with the refused file: %s", got)
	}
}

func tunnel(name string, index uint32) plan.Link {
	return plan.Link{Index: index, Name: name, Up: true}
}

// TestReloadKeepsWhatOthersOpened: sessions of hooks and of hands.
func TestReloadKeepsWhatOthersOpened(t *testing.T) {
	sys, journal := newHost(t), &enforcetest.Journal{}
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(tunnel("wg0", 6))
		tb.AddLink(tunnel("wg1", 7))
		return nil
	})
	e, _ := run(t, sys, journal, enforce.Options{Own: []enforce.Session{{Tunnel: "wg1", Protect: prefixes("10.7.0.0/16"), Rearm: true}}})
	open(t, e, told)
	open(t, e, enforce.Session{Tunnel: "wg0", Protect: prefixes("10.9.0.0/16")})
	open(t, e, enforce.Session{Tunnel: "wg1", Protect: prefixes("10.8.0.0/16")})
	done, err := e.Reload(t.Context(), []enforce.Session{said})
	if got, want := fmt.Sprint(done, err), "{[] [tun0] [] [wg1 wg0]} <nil>"; got != want {
		t.Errorf("reloaded %s, want %s", got, want)
	}
	if got := wishes(t, e); !strings.Contains(got, "wg0[10.9.0.0/16]") || !strings.Contains(got, "wg1[10.8.0.0/16]") || !strings.Contains(got, "docker*") {
		t.Errorf("reloaded to %s", got)
	}
	done, err = e.Reload(t.Context(), nil)
	if got, want := fmt.Sprint(done, err), "{[] [tun0] [] [wg1 wg0]} <nil>"; got != want {
		t.Errorf("an empty file %s, want %s", got, want)
	}
	if got := wishes(t, e); !strings.Contains(got, "tun0[172.31.0.0/16 172.31.7.0/24 fd31::/32]") {
		t.Errorf("the hook's own facts are lost: %s", got)
	}
}

// TestNobodyLeaves: the end of a connection that nobody told of is an error.
func TestNobodyLeaves(t *testing.T) {
	e, _ := run(t, newHost(t), &enforcetest.Journal{}, enforce.Options{})
	if _, err := e.Leave(t.Context(), "tun7"); !errors.Is(err, enforce.ErrNoSession) {
		t.Errorf("left: %v", err)
	}
}
