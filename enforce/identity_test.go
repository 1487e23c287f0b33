package enforce_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

var (
	tunType    = plan.LinkType{Kind: "tun", Frames: 65534}
	tapType    = plan.LinkType{Kind: "tun", Frames: 1}
	bridgeType = plan.LinkType{Kind: "bridge", Frames: 1}
	wgType     = plan.LinkType{Kind: "wireguard", Frames: 65534}
)

// newTypedHost is newHost whose tunnel has a type.
func newTypedHost(t *testing.T) *enforcetest.System {
	t.Helper()
	sys := newHost(t)
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.DeleteLink(tun0) })
	do(t, sys, 0, func(tb *enforcetest.Table) error { return comes(tb, tun0, tunType) })
	return sys
}

// comes makes an interface named tun0, with what a VPN gives it.
func comes(tb *enforcetest.Table, index uint32, typ plan.LinkType) error {
	tb.AddLink(plan.Link{Index: index, Name: "tun0", Up: true, Type: typ})
	return errors.Join(
		tb.AddAddress(index, pfx("10.8.0.2/24")), tb.AddAddress(index, pfx("fd08::2/64")),
		tb.Add(via("172.31.0.0/16", "10.8.0.1", index), enforcetest.Add),
		tb.Add(via("fd31::/32", "", index), enforcetest.Add),
	)
}

// keptStore is a SessionStore in memory.
type keptStore struct {
	mu   sync.Mutex
	kept []enforce.KeptSession
}

func (m *keptStore) LoadSessions() ([]enforce.KeptSession, error) { return m.links(), nil }

func (m *keptStore) links() []enforce.KeptSession {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.kept)
}

func (m *keptStore) KeepSessions(kept []enforce.KeptSession) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept = slices.Clone(kept)
	return nil
}

// policies remembers the last that was told.
type policies struct {
	mu   sync.Mutex
	last enforce.Protection
}

func (p *policies) take(now enforce.Protection) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = now
}

// tunnel is what the last policy says of the only session's tunnel.
func (p *policies) tunnel() (uint32, plan.LinkType) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.last.Sessions) != 1 {
		return 99, plan.LinkType{}
	}
	return p.last.Sessions[0].Link, p.last.Sessions[0].Type
}

// TestAnotherKindIsNotTheTunnel: under a guard whoever has the tunnel's name must be
// what the tunnel was, whether the interface in between was seen to be away or not, and
// whether the daemon lived on or not.
func TestAnotherKindIsNotTheTunnel(t *testing.T) {
	gone := func(tb *enforcetest.Table) error { return tb.DeleteLink(tun0) }
	for _, kind := range []plan.LinkType{bridgeType, tapType, wgType} {
		for _, tt := range []struct {
			name          string
			own, restarts bool
			steps         func(poser func(*enforcetest.Table) error) []func(*enforcetest.Table) error
		}{
			{"seen to be away", false, false, func(p func(*enforcetest.Table) error) []func(*enforcetest.Table) error {
				return []func(*enforcetest.Table) error{gone, p}
			}},
			{"at once", false, false, func(p func(*enforcetest.Table) error) []func(*enforcetest.Table) error {
				return []func(*enforcetest.Table) error{func(tb *enforcetest.Table) error { return errors.Join(gone(tb), p(tb)) }}
			}},
			{"the daemon's own", true, false, func(p func(*enforcetest.Table) error) []func(*enforcetest.Table) error {
				return []func(*enforcetest.Table) error{gone, p}
			}},
			{"while no daemon was there", false, true, nil},
			{"the daemon's own, while no daemon was there", true, true, nil},
		} {
			t.Run(kind.String()+", "+tt.name, func(t *testing.T) {
				sys, store, told := newTypedHost(t), &keptStore{}, &policies{}
				opt := enforce.Options{OnLoss: enforce.LossGuard, Sessions: store, OnPolicy: told.take}
				own := split
				own.Rearm = true
				if tt.own {
					opt.Own = []enforce.Session{own}
				}
				e, stop := run(t, sys, &enforcetest.Journal{}, opt)
				if !tt.own {
					open(t, e, split)
				}
				index := tun0 // an interface with the tunnel's index is as little the tunnel as another
				if kind == tapType {
					index = 8 // but for one whose frames alone are others: see TestFramesMayChange
				}
				poser := func(tb *enforcetest.Table) error { return comes(tb, index, kind) }
				if tt.restarts {
					_ = stop()
					do(t, sys, 0, func(tb *enforcetest.Table) error { return errors.Join(gone(tb), poser(tb)) })
					e, _ = run(t, sys, &enforcetest.Journal{}, opt)
				} else {
					for _, step := range tt.steps(poser) {
						do(t, sys, 0, step)
						e.Wake("test")
						eventually(t, "the guard", func() bool { return status(t, e).State == enforce.Reconnecting })
					}
				}
				eventually(t, "it is told", func() bool {
					return strings.Contains(status(t, e).Error, "tun0 is a "+kind.String()+", and the tunnel was a tun")
				})
				if st := status(t, e); st.State != enforce.Reconnecting {
					t.Errorf("state %s", st.State)
				}
				if link, typ := told.tunnel(); link != 0 || typ != tunType {
					t.Errorf("those who watch packets are told of %d, %v", link, typ)
				}
				eventually(t, "its routes are out", func() bool { return leavesBy(sys, "172.31.5.1") == eth0 })
				do(t, sys, 0, func(tb *enforcetest.Table) error {
					return errors.Join(tb.DeleteLink(index), comes(tb, 9, tunType))
				})
				eventually(t, "the tunnel is back", func() bool {
					st := status(t, e)
					return st.State == enforce.Enforcing && st.Error == "" && leavesBy(sys, "172.31.5.1") == 9
				})
				if link, typ := told.tunnel(); link != 9 || typ != tunType {
					t.Errorf("those who watch packets are told of %d, %v", link, typ)
				}
			})
		}
	}
}

// TestOpeningTakesAnotherKind: who opens the session means the interface that is there.
func TestOpeningTakesAnotherKind(t *testing.T) {
	sys := newTypedHost(t)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{OnLoss: enforce.LossGuard})
	open(t, e, split)
	do(t, sys, 0, func(tb *enforcetest.Table) error { return errors.Join(tb.DeleteLink(tun0), comes(tb, 9, wgType)) })
	eventually(t, "it is told", func() bool { return status(t, e).Error != "" })
	if st := open(t, e, split); st.State != enforce.Enforcing || st.Error != "" {
		t.Errorf("opened: %s, %s", st.State, st.Error)
	}
}

// TestFramesMayChange: a modem's interface may carry other frames from one moment to
// the next. It is the same interface.
func TestFramesMayChange(t *testing.T) {
	sys := newTypedHost(t)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{OnLoss: enforce.LossGuard})
	open(t, e, split)
	do(t, sys, 0, func(tb *enforcetest.Table) error { return errors.Join(tb.DeleteLink(tun0), comes(tb, tun0, tapType)) }) // as if it had changed
	e.Wake("test")
	add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
	eventually(t, "it is enforced", func() bool {
		st := status(t, e)
		return st.Removed == 1 && st.State == enforce.Enforcing && st.Error == ""
	})
}

// TestGapUnderGuard: what comes while a tunnel is replaced came while it was
// connected, and does not come back. What stood before the connection does.
func TestGapUnderGuard(t *testing.T) {
	for name, seen := range map[string]bool{"seen to be away": true, "at once": false} {
		t.Run(name, func(t *testing.T) {
			sys := newTypedHost(t)
			before := via("172.31.4.0/24", "192.168.1.66", eth0)
			add(t, sys, before)
			e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{OnLoss: enforce.LossGuard})
			open(t, e, split)
			sys.Lose(1 << 20) // only the tables tell
			attack := via("172.31.5.0/24", "192.168.1.66", eth0)
			do(t, sys, 4711, func(tb *enforcetest.Table) error { return tb.DeleteLink(tun0) })
			if seen {
				e.Wake("test")
				eventually(t, "it is gone", func() bool { return status(t, e).State == enforce.Reconnecting })
			}
			do(t, sys, 4711, func(tb *enforcetest.Table) error {
				return errors.Join(tb.Add(attack, enforcetest.Add), comes(tb, 9, tunType))
			})
			e.Wake("test")
			eventually(t, "it is back", func() bool {
				st := status(t, e)
				return st.State == enforce.Enforcing && leavesBy(sys, "172.31.5.1") == 9
			})
			if err := stop(); err != nil {
				t.Error(err)
			}
			if text := sys.Text(); !strings.Contains(text, "172.31.4.0/24") || strings.Contains(text, "172.31.5.0/24") {
				t.Errorf("in the end\n%s", text)
			}
		})
	}
}

// TestReplacedIsGone: a tunnel that another takes the place of between two looks has
// vanished, and without a guard its session ends. One that waits for its tunnel takes
// the next.
func TestReplacedIsGone(t *testing.T) {
	for name, rearm := range map[string]bool{"a hook's": false, "one that waits": true} {
		t.Run(name, func(t *testing.T) {
			sys, store := newTypedHost(t), &keptStore{}
			e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{Sessions: store})
			s := split
			s.Rearm = rearm
			open(t, e, s)
			do(t, sys, 0, func(tb *enforcetest.Table) error { return errors.Join(tb.DeleteLink(tun0), comes(tb, 9, tunType)) })
			e.Wake("test")
			if rearm {
				eventually(t, "it goes on", func() bool {
					return slices.ContainsFunc(store.links(), func(k enforce.KeptSession) bool { return k.Link.Index == 9 })
				})
				if st := status(t, e); st.State != enforce.Enforcing {
					t.Errorf("state %s", st.State)
				}
				return
			}
			eventually(t, "it ends", func() bool {
				st, err := e.Status(t.Context())
				return err == nil && len(st.Sessions) == 0
			})
			if kept := store.links(); len(kept) > 0 {
				t.Errorf("kept %v", kept)
			}
			if _, err := e.Close(t.Context(), "tun0"); !errors.Is(err, enforce.ErrNoSession) {
				t.Errorf("closed: %v", err)
			}
		})
	}
}

// TestIdentityIsKept: the next process knows the tunnel by what it is now.
func TestIdentityIsKept(t *testing.T) {
	sys, store := newTypedHost(t), &keptStore{}
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{Sessions: store, OnLoss: enforce.LossGuard})
	s := split
	s.Rearm = true // as "culvert up --rearm" asks
	open(t, e, s)
	is := func(what string, want enforce.LinkID) {
		t.Helper()
		eventually(t, what, func() bool {
			kept := store.links()
			return len(kept) == 1 && kept[0].Link == want && slices.Equal(kept[0].Session.Protect, split.Protect)
		})
	}
	is("opened", enforce.LinkID{Index: tun0, Name: "tun0", Type: tunType})
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.Rename(tun0, "vpn0") })
	is("renamed", enforce.LinkID{Index: tun0, Name: "vpn0", Type: tunType})
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.DeleteLink(tun0) })
	eventually(t, "it is away", func() bool { return status(t, e).State == enforce.Reconnecting })
	do(t, sys, 0, func(tb *enforcetest.Table) error { return comes(tb, 9, tunType) })
	is("back", enforce.LinkID{Index: 9, Name: "tun0", Type: tunType})
}

// TestWaitingIsKept: a session that somebody opened to wait for its tunnel waits on
// after a restart.
func TestWaitingIsKept(t *testing.T) {
	sys, store := newTypedHost(t), &keptStore{}
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{Sessions: store})
	s := enforce.Session{Tunnel: "wg9", Protect: []netip.Prefix{pfx("172.29.0.0/16")}, Rearm: true}
	open(t, e, s)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	e, _ = run(t, sys, &enforcetest.Journal{}, enforce.Options{Sessions: store})
	if st := status(t, e); st.State != enforce.Connecting || st.Tunnel != "wg9" {
		t.Errorf("%s is %s", st.Tunnel, st.State)
	}
}

// TestKeptIsFitted: a kept session that names what the configuration gives to another
// tunnel now loses that alone.
func TestKeptIsFitted(t *testing.T) {
	for _, loss := range []enforce.Loss{enforce.LossRestore, enforce.LossGuard} {
		sys, store := newTypedHost(t), &keptStore{}
		opt := enforce.Options{Sessions: store, OnLoss: loss}
		e, stop := run(t, sys, &enforcetest.Journal{}, opt)
		open(t, e, split)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		opt.Own = []enforce.Session{{Tunnel: "wg9", Protect: prefixes("fd31::/32 172.29.0.0/16"), Rearm: true}}
		e, _ = run(t, sys, &enforcetest.Journal{}, opt)
		st, err := e.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(st.Sessions) != 2 || !slices.Equal(st.Sessions[1].Protected, prefixes("172.31.0.0/16")) || st.Sessions[1].State != enforce.Enforcing {
			t.Errorf("%s: %+v", loss, st.Sessions)
		}
	}
}
