package enforce

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
)

// Asker is a System that can be asked which way a packet would go. What is asked
// decides whether a session is enforcing: a right main table is of no use where
// main is not asked.
type Asker interface {
	// Ways returns the way of an ordinary packet of this host to each address,
	// in order. A destination that cannot be reached is an answer.
	Ways(ctx context.Context, to []netip.Addr) ([]Way, error)
}

// Way is the route that takes a packet.
type Way struct {
	Route plan.Route
	Table string // that the route is in, by name where it has one
	Err   error  // what a sender is told where there is no way, else nil
}

// Rule is a policy rule: which table is asked for which packets.
type Rule struct {
	Family   int          // 4 or 6
	Dst      netip.Prefix // of its packets; the zero Prefix is any
	Selects  bool         // it is for some packets only, by more than their destination
	Table    string       // by name where it has one; "" where the rule asks none
	Suppress int          // routes of this prefix length and shorter are passed over; -1 is none
	Text     string       // in the manner of ip-rule(8)
}

// mainTable is how a System calls the table that is enforced.
const mainTable = "main"

// AsksMain reports whether every packet of its family asks main by this rule.
func (r *Rule) AsksMain() bool {
	return r.Table == mainTable && !r.Selects && !r.Dst.IsValid() && r.Suppress < 0
}

// BeforeMain returns the rules that are asked before main for a family, and whether
// main is asked at all. Systems without rules ask nothing but main.
func BeforeMain(rules []Rule, family int) (before []Rule, asked bool) {
	if rules == nil {
		return nil, true
	}
	for _, r := range rules {
		if r.Family == family && r.AsksMain() {
			return before, true
		}
		if r.Family == family && r.Table != mainTable && r.Table != "local" {
			before = append(before, r)
		}
	}
	return before, false
}

// asksAtOnce bounds what one pass asks. A policy of more prefixes is gone through
// in several passes.
const asksAtOnce = 256

// How often the kernel must say that main's own route leads elsewhere before it is
// believed: a conflict may just have come, and be about to go.
const mainDoubts = 3

// doubt is a wrong answer for a prefix.
type doubt struct {
	times int
	text  string
}

// question is an address to ask for, and what the answer decides.
type question struct {
	session *session
	prefix  netip.Prefix
	addr    netip.Addr
}

// verify asks the system itself whether what is protected enters the tunnel, and
// fails the sessions for which it does not.
func (e *Enforcer) verify(ctx context.Context, missing []netip.Prefix) {
	asker, ok := e.sys.(Asker)
	if !ok || e.opt.Audit {
		return
	}
	for _, s := range e.sessions {
		if e.verifiable(s, missing) {
			e.verifyRules(s)
		}
	}
	questions := e.questions(missing)
	to := make([]netip.Addr, len(questions))
	for i, q := range questions {
		to[i] = q.addr
	}
	ways, err := asker.Ways(ctx, to)
	if err != nil {
		e.log.error("the kernel cannot be asked for ways: the state is what the table says", "err", err)
		return
	}
	for i, q := range questions {
		e.takeWay(q, &ways[i])
	}
	for _, s := range e.sessions {
		e.believe(s)
	}
}

func (e *Enforcer) verifiable(s *session, missing []netip.Prefix) bool {
	return s.link != 0 && !s.loss && s.up && s.err == nil && !lacks(s, missing)
}

// verifyRules fails a session where no rule asks main for it.
func (e *Enforcer) verifyRules(s *session) {
	for _, family := range []int{4, 6} {
		needs := func(p netip.Prefix) bool { return int(plan.FamilyOf(p)) == family && !slices.Contains(s.OtherTable, p) }
		if _, asked := BeforeMain(e.facts.Rules, family); asked || s.err != nil || !slices.ContainsFunc(without(s.Protect, s.muted()), needs) {
			continue
		}
		dash := map[int]string{4: "", 6: "-6 "}[family]
		s.err = fmt.Errorf("no rule asks table main for every IPv%d packet, so the tunnel's routes are not used: \"ip %srule add pref 32766 lookup main\" puts the rule back", family, dash)
	}
}

// questions returns an address of each protected prefix, as many as one pass may ask.
func (e *Enforcer) questions(missing []netip.Prefix) []question {
	var all []question
	for _, s := range e.sessions {
		if !e.verifiable(s, missing) {
			continue
		}
		for _, p := range without(s.Protect, s.muted()) {
			if a, ok := e.sample(s, p); ok {
				all = append(all, question{s, p, a})
			}
		}
		for _, f := range e.foreignLocal(s) {
			all = append(all, question{s, f.Dst, f.Dst.Addr()})
		}
	}
	e.forgetDoubts(all)
	if len(all) <= asksAtOnce {
		return all
	}
	from := e.asked % len(all)
	e.asked = from + asksAtOnce
	return slices.Concat(all[from:], all[:from])[:asksAtOnce]
}

// forgetDoubts drops the doubts that no question of a pass can clear.
func (e *Enforcer) forgetDoubts(all []question) {
	for _, s := range e.sessions {
		if len(s.doubts) == 0 {
			continue
		}
		asked := map[netip.Prefix]bool{}
		for _, q := range all {
			asked[q.prefix] = asked[q.prefix] || q.session == s
		}
		maps.DeleteFunc(s.doubts, func(p netip.Prefix, _ doubt) bool { return !asked[p] })
	}
}

// samples bounds how many addresses of a prefix are looked at for one to ask for.
const samples = 16

// sample chooses an address of a prefix that no other word of the policy, and no
// interface, has for itself: always the same, so that the state does not waver.
func (e *Enforcer) sample(s *session, p netip.Prefix) (netip.Addr, bool) {
	for i := range samples {
		a := addressIn(p, i)
		class, en := e.policy().Lookup(a)
		if class == plan.Protected && en.Prefix == p && en.Tunnel == s.link && !e.ownAddress(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// addressIn returns the n-th of an endless row of addresses of a prefix.
func addressIn(p netip.Prefix, n int) netip.Addr {
	h := fnv.New128a()
	_, _ = fmt.Fprint(h, p, n)
	sum := h.Sum(nil)
	b := p.Addr().AsSlice()
	for i := range b {
		switch free := (i+1)*8 - p.Bits(); {
		case free >= 8:
			b[i] = sum[i]
		case free > 0:
			b[i] |= sum[i] & (1<<free - 1)
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (e *Enforcer) ownAddress(a netip.Addr) bool {
	return slices.ContainsFunc(e.facts.Links, func(l plan.Link) bool {
		return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
	})
}

// takeWay notes whether an answer is right.
func (e *Enforcer) takeWay(q question, w *Way) {
	s := q.session
	if e.rightWay(q, w) {
		delete(s.doubts, q.prefix)
		return
	}
	if s.doubts == nil {
		s.doubts = map[netip.Prefix]doubt{}
	}
	d := doubt{times: s.doubts[q.prefix].times + 1, text: e.wrongWay(q, w)}
	if w.Err == nil && w.Table != mainTable || slices.Contains(s.OtherTable, q.prefix) {
		d.times = mainDoubts // no conflict of main is about to go
	}
	s.doubts[q.prefix] = d
}

// rightWay reports whether a way enters the tunnel, or may be another.
func (e *Enforcer) rightWay(q question, w *Way) bool {
	if w.Err != nil {
		return e.opt.KeepUnreachable
	}
	switch w.Route.Type {
	case plan.Local, plan.Broadcast, plan.Anycast, plan.Multicast:
		return true // of this host's own addresses, as the notes say
	}
	_, en := e.policy().Lookup(q.addr)
	for hop := range w.Route.Hops() {
		if hop.Link != q.session.link && (en == nil || !en.Keeps(hop.Link)) {
			return false
		}
	}
	return true
}

// wrongWay says where a protected address goes instead, and what leads it there.
func (e *Enforcer) wrongWay(q question, w *Way) string {
	s := q.session
	if w.Err != nil {
		return fmt.Sprintf("nothing leads to %s of %s, not even %s: %v; a rule or another table cuts it off", q.addr, q.prefix, s.name(), w.Err)
	}
	text := fmt.Sprintf("%s of %s does not enter %s: table %s is asked first and has %s", q.addr, q.prefix, s.name(), w.Table, e.text(&w.Route))
	before, _ := BeforeMain(e.facts.Rules, int(plan.FamilyOf(q.prefix)))
	i := slices.IndexFunc(before, func(r Rule) bool { return r.Table == w.Table })
	switch {
	case slices.Contains(s.OtherTable, q.prefix):
		return fmt.Sprintf("%s of %s does not enter %s: the VPN's own table does not take it, its rule or its route is gone; table %s has %s",
			q.addr, q.prefix, s.name(), w.Table, e.text(&w.Route))
	case w.Table == mainTable:
		return fmt.Sprintf("%s of %s does not enter %s: main has %s", q.addr, q.prefix, s.name(), e.text(&w.Route))
	case i >= 0:
		text += ", by rule " + before[i].Text
	}
	return text
}

// believe fails a session for the first of its prefixes that is surely wrong, and
// asks again soon where that is not sure yet.
func (e *Enforcer) believe(s *session) {
	var worst []netip.Prefix
	for p, d := range s.doubts {
		if d.times >= mainDoubts {
			worst = append(worst, p)
		} else {
			e.wantLevel("the kernel was asked and told of another way")
		}
	}
	if len(worst) == 0 || s.err != nil {
		return
	}
	slices.SortFunc(worst, plan.ComparePrefix)
	text := s.doubts[worst[0]].text
	if n := len(worst) - 1; n > 0 {
		text += fmt.Sprintf(" (and so for %d more prefixes)", n)
	}
	s.err = fmt.Errorf("%s", text)
}

// name is what the session's tunnel is called now.
func (s *session) name() string {
	if s.link != 0 && !s.loss && s.id.Name != "" {
		return s.id.Name
	}
	return s.Tunnel
}
