package enforce

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
)

// Join is what holds on a tunnel that the configuration describes once a VPN's hook
// tells of a connection on it. The hook adds the facts of the connection; the
// choices of the configuration stay, and win where the two contradict each other:
//
//   - Protect, Exclude, Servers, ServerFrom, ExcludeInterfaces and OtherTable hold what
//     either names;
//   - what the configuration excludes is not protected because a route is pushed,
//     and what it protects is not excluded because one goes by another gateway;
//   - it is waited for (Rearm) as the configuration says.
func Join(own, hook Session) Session {
	out := own
	out.Protect = slices.Concat(own.Protect, without(hook.Protect, own.Exclude))
	out.Derived = without(hook.Derived, slices.Concat(own.Protect, own.Exclude))
	out.Exclude = slices.Concat(own.Exclude, without(hook.Exclude, own.Protect))
	out.OtherTable = slices.Concat(own.OtherTable, without(hook.OtherTable, own.Exclude))
	out.Servers = union(own.Servers, hook.Servers)
	out.ExcludeInterfaces = union(own.ExcludeInterfaces, hook.ExcludeInterfaces)
	out.ServerFrom = union(own.ServerFrom, hook.ServerFrom)
	out.OtherFamily = cmp.Or(own.OtherFamily, hook.OtherFamily)
	out.Hook = hook.Hook
	return tidy(out)
}

// without returns the elements that are not among some others.
func without[T comparable](list, drop []T) []T {
	return slices.DeleteFunc(slices.Clone(list), func(x T) bool { return slices.Contains(drop, x) })
}

// union returns the elements of both, each once.
func union[T comparable](a, b []T) []T { return append(slices.Clone(a), without(b, a)...) }

// ownOn returns what the configuration says of a tunnel, or nil.
func (e *Enforcer) ownOn(tunnel string) *Session {
	if i := slices.IndexFunc(e.own, func(s Session) bool { return s.Tunnel == tunnel }); i >= 0 {
		return &e.own[i]
	}
	return nil
}

// joined is what a session that somebody asks for comes to on its tunnel.
func (e *Enforcer) joined(s Session) Session {
	if own := e.ownOn(s.Tunnel); own != nil && s.Hook {
		return Join(*own, s)
	}
	return s
}

// Leave ends a connection on a tunnel, because the VPN says that it has ended or
// because its guard has. A session that the configuration describes waits for the
// tunnel again, once it is gone; any other ends as by Close.
func (e *Enforcer) Leave(ctx context.Context, tunnel string) (status SessionStatus, err error) {
	doErr := e.do(ctx, func(ctx context.Context) { status, err = e.quit(ctx, tunnel) })
	return status, cmp.Or(doErr, err)
}

func (e *Enforcer) quit(ctx context.Context, tunnel string) (SessionStatus, error) {
	s := e.sessionNamed(tunnel)
	if s == nil {
		return SessionStatus{}, fmt.Errorf("close session on %s: %w", tunnel, ErrNoSession)
	}
	if e.ownOn(s.Tunnel) != nil {
		e.waits[s.Tunnel] = true
	}
	return e.close(ctx, tunnel)
}

// await opens again the sessions of the configuration that a connection's end had
// closed, once their tunnels are gone: they wait for the next.
func (e *Enforcer) await() {
	for i := range e.own {
		s := e.own[i]
		if !e.waits[s.Tunnel] || linkNamed(e.facts.Links, s.Tunnel) != nil || e.sessionNamed(s.Tunnel) != nil {
			continue
		}
		delete(e.waits, s.Tunnel)
		e.sessions = append(e.sessions, &session{Session: s, state: Connecting})
		e.log.info("waiting for the tunnel again", "tunnel", s.Tunnel)
	}
}

// forgetHook makes a session whose tunnel vanished what the configuration says of
// it: what a hook told was of the connection that is gone.
func (e *Enforcer) forgetHook(s *session) {
	if own := e.ownOn(s.Tunnel); own != nil && s.asked.Hook {
		s.Session, s.asked = *own, Session{}
		e.keepSessions()
	}
}

// Reloaded says what became of the sessions when the configuration was read again,
// by the names of their tunnels.
type Reloaded struct {
	Opened  []string `json:"opened"`
	Changed []string `json:"changed"`
	Closed  []string `json:"closed"`
	Kept    []string `json:"kept"` // as they were, those of hooks and of "culvert up" among them
}

// Reload puts other sessions in the place of Options.Own: all of them, or none when
// the error says why. What stays protected is so throughout. A session that was
// opened on none of their tunnels stays; on one of them a hook's is joined with what
// is said of the tunnel now, and one that was opened by hand stays as it is.
func (e *Enforcer) Reload(ctx context.Context, own []Session) (done Reloaded, err error) {
	doErr := e.do(ctx, func(ctx context.Context) { done, err = e.reload(ctx, own) })
	return done, cmp.Or(doErr, err)
}

func (e *Enforcer) reload(ctx context.Context, own []Session) (Reloaded, error) {
	facts, err := e.sys.Facts(ctx)
	if err != nil {
		return Reloaded{}, fmt.Errorf("read interfaces: %w", err)
	}
	before, waits := e.own, e.waits
	e.own = nil
	for _, s := range own {
		e.own = append(e.own, tidy(s))
	}
	next, done := e.next()
	if err := cmp.Or(e.checkAll(next, facts.Links), e.admitAll(ctx, next, facts.Links)); err != nil {
		e.own, e.waits = before, waits
		return Reloaded{}, err
	}
	clear(e.waits)
	for _, s := range slices.Clone(e.sessions) {
		if slices.Contains(done.Closed, s.Tunnel) {
			e.end(s)
		}
	}
	for _, s := range next {
		if o := e.sessionNamed(s.Tunnel); o != nil {
			o.become(s.Session)
		} else {
			e.sessions = append(e.sessions, s)
		}
	}
	e.level(ctx, "configuration reloaded")
	e.keepSessions()
	return done, nil
}

// next makes the sessions that there would be by the configuration as it is now.
func (e *Enforcer) next() (next []*session, done Reloaded) {
	done = Reloaded{Opened: []string{}, Changed: []string{}, Closed: []string{}, Kept: []string{}}
	for _, o := range e.sessions {
		var want Session
		switch own := e.ownOn(o.Tunnel); {
		case o.asked.Tunnel != "":
			want = e.joined(o.asked)
		case own != nil:
			want = *own
		default:
			done.Closed = append(done.Closed, o.Tunnel)
			continue
		}
		was := o.Session
		if was.Protect = o.whole(); equalWish(want, was) {
			done.Kept = append(done.Kept, o.Tunnel)
		} else {
			done.Changed = append(done.Changed, o.Tunnel)
		}
		next = append(next, &session{Session: want})
	}
	for _, own := range e.own {
		if e.sessionNamed(own.Tunnel) == nil {
			done.Opened = append(done.Opened, own.Tunnel)
			next = append(next, &session{Session: own, state: Connecting})
		}
	}
	return next, done
}

func equalWish(a, b Session) bool {
	return a.Tunnel == b.Tunnel && a.Rearm == b.Rearm && a.OtherFamily == b.OtherFamily &&
		slices.Equal(a.Protect, b.Protect) && slices.Equal(a.Exclude, b.Exclude) && slices.Equal(a.OtherTable, b.OtherTable) &&
		slices.Equal(a.Servers, b.Servers) && slices.Equal(a.ServerFrom, b.ServerFrom) && slices.Equal(a.ExcludeInterfaces, b.ExcludeInterfaces)
}

// checkAll finds what is wrong with sessions that would be open together. Their
// tunnels may be away.
func (e *Enforcer) checkAll(all []*session, links []plan.Link) error {
	for i, s := range all {
		alone := s.Session
		alone.Rearm = true
		if err := e.checkAlone(alone, links); err != nil {
			return err
		}
		s.link, s.up = uint32(i)+1, true
	}
	_, problems := plan.Build(e.spec(all, links))
	for _, s := range all {
		s.link, s.up = 0, false
	}
	if len(problems) > 0 {
		return &InputError{Input: problems[0].Prefix.String(), Text: problems[0].Text}
	}
	return nil
}
