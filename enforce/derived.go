package enforce

import (
	"fmt"
	"net/netip"
	"slices"
)

// Two VPNs may have the same network of their own: 10.8.0.0/24 is OpenVPN's usual one.
// The kernel routes it into one of the tunnels. Here one session protects it, and the
// other goes on without: one prefix in dispute must not cost a whole session.

// leaves is a prefix that a session left to another one, which names it too.
type leaves struct {
	prefix netip.Prefix
	to     string // the other's tunnel
}

// whole is all that a session asks to protect, the prefixes left to others included.
func (s *session) whole() []netip.Prefix {
	if len(s.left) == 0 {
		return s.Protect
	}
	out := slices.Clone(s.Protect)
	for _, l := range s.left {
		out = append(out, l.prefix)
	}
	return sortedPrefixes(out)
}

// divide says what session i of all protects, and what it leaves to others. A session
// whose tunnel is not there takes nothing from others, unless a guard stands for it.
func divide(all []*session, i int) (protect []netip.Prefix, left []leaves) {
	s := all[i]
	if len(s.Derived) == 0 {
		return s.Protect, nil
	}
	for _, p := range s.whole() {
		if to := claimant(all, i, p); to != nil && slices.Contains(s.Derived, p) {
			left = append(left, leaves{p, to.Tunnel})
			continue
		}
		protect = append(protect, p)
	}
	return protect, left
}

// claimant returns the session to which session i leaves its derived prefix p: one that
// names p explicitly, to protect or to exclude it, else an earlier one that derived it
// too. It is nil where session i keeps the prefix.
func claimant(all []*session, i int, p netip.Prefix) *session {
	for j, o := range all {
		derived := slices.Contains(o.Derived, p)
		switch {
		case j == i || o.link == 0 || derived && j > i:
		case slices.Contains(o.Exclude, p) || slices.Contains(o.whole(), p):
			return o
		}
	}
	return nil
}

// divideAll brings all sessions to what each of them protects now.
func (e *Enforcer) divideAll() {
	type part struct {
		protect []netip.Prefix
		left    []leaves
	}
	parts := make([]part, len(e.sessions))
	for i := range e.sessions {
		parts[i].protect, parts[i].left = divide(e.sessions, i)
	}
	for i, s := range e.sessions {
		for _, l := range without(parts[i].left, s.left) {
			e.log.warn("another session has this tunnel's own network: it is not protected for this tunnel", "tunnel", s.Tunnel, "prefix", l.prefix, "other", l.to)
		}
		if s.left = parts[i].left; !slices.Equal(s.Protect, parts[i].protect) {
			s.Protect = parts[i].protect
		}
	}
}

// leftFindings says which prefixes a session left to others.
func leftFindings(s *session) (out []string) {
	for _, l := range s.left {
		out = append(out, fmt.Sprintf("%s is this tunnel's own network, and the session on %s names it too: that session protects it, and packets to it do not go by %s", l.prefix, l.to, s.Tunnel))
	}
	return out
}
