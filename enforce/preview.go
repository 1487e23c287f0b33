package enforce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/culvert-project/culvert/enforce/plan"
)

// Preview is what opening sessions would do, had it been done now.
type Preview struct {
	Actions       []PreviewAction `json:"actions"`
	Missing       []netip.Prefix  `json:"missing"` // protected prefixes without a tunnel route
	Reported      []string        `json:"reported"`
	OneFamily     []string        `json:"one_family"` // sessions that protect all of one family while the other leaves outside
	Unenforceable []string        `json:"unenforceable"`
	Notes         []string        `json:"notes"`
}

// PreviewAction is one step.
type PreviewAction struct {
	Kind      string   `json:"kind"` // "put", "remove", "withdraw", "restore" or "forget"
	Route     string   `json:"route"`
	Reason    string   `json:"reason"`
	Links     []string `json:"links"`     // interfaces of its legs
	Default   bool     `json:"default"`   // it is a default route
	Connected bool     `json:"connected"` // the kernel's own for an interface's network
}

// PreviewSessions reads the table and says what opening the sessions would do, where no
// Enforcer is at work. Nothing is changed, and reading needs no privilege.
func PreviewSessions(ctx context.Context, sys System, sessions []Session, opt Options) (Preview, error) {
	return New(sys, noJournal{}, opt).previewOf(ctx, sessions)
}

// Preview says what opening the sessions would do beside those that are open, each in
// the place of the one on its tunnel: what is held, and what the Enforcer has put
// itself, is known to it. Nothing is changed, and the loop goes on meanwhile.
func (e *Enforcer) Preview(ctx context.Context, sessions []Session) (Preview, error) {
	var copied *Enforcer
	if err := e.do(ctx, func(context.Context) { copied = e.copied() }); err != nil {
		return Preview{}, err
	}
	return copied.previewOf(ctx, sessions)
}

// copied is an Enforcer that knows all that this one does, to be asked what it would
// do. It belongs to the caller, writes nothing down and tells nobody.
func (e *Enforcer) copied() *Enforcer {
	opt := e.opt
	opt.Log, opt.Observe, opt.OnPolicy, opt.Own, opt.Sessions = nil, nil, nil, nil, nil
	c := New(e.sys, noJournal{}, opt)
	for _, s := range e.sessions {
		c.sessions = append(c.sessions, &session{
			Session: s.Session, asked: s.asked, state: s.state, link: s.link, id: s.id, up: s.up, loss: s.loss,
		})
	}
	for h := range e.held.all() {
		c.held.add(*h)
	}
	c.lastID = e.lastID
	c.marks = e.marks.copied()
	c.facts, c.lookedAt, c.names = e.facts, e.lookedAt, maps.Clone(e.names)
	c.own = e.own
	c.setPolicy(e.policy())
	return c
}

// noJournal is where nothing is ever removed.
type noJournal struct{}

func (noJournal) Load() ([]Entry, error) { return nil, nil }
func (noJournal) Hold([]Entry) error     { return nil }
func (noJournal) Forget([]uint64) error  { return nil }

// previewOf opens the sessions in an Enforcer that does not run.
func (e *Enforcer) previewOf(ctx context.Context, sessions []Session) (Preview, error) {
	facts, err := e.sys.Facts(ctx)
	if err != nil {
		return Preview{}, fmt.Errorf("read interfaces: %w", err)
	}
	for _, s := range sessions {
		s = tidy(s)
		if err := e.admit(ctx, &s, facts.Links); err != nil {
			return Preview{}, err
		}
		o := e.sessionNamed(s.Tunnel)
		if o == nil {
			o = &session{}
			e.sessions = append(e.sessions, o)
		}
		o.Session = s
	}
	if err := e.look(ctx); err != nil {
		return Preview{}, err
	}
	pl, err := e.judgeAgain(ctx)
	if err != nil {
		return Preview{}, err
	}
	e.takeIn(&pl)
	return e.preview(&pl), nil
}

// judgeAgain judges the table, reading it again when it changed meanwhile.
func (e *Enforcer) judgeAgain(ctx context.Context) (pl plan.Plan, err error) {
	for range rounds {
		if pl, err = e.judge(ctx); !errors.Is(err, ErrInterrupted) {
			break
		}
	}
	return pl, err
}

func (e *Enforcer) preview(pl *plan.Plan) Preview {
	pr := Preview{Actions: []PreviewAction{}, Missing: append([]netip.Prefix{}, pl.Missing...),
		Reported: []string{}, Unenforceable: []string{}, Notes: []string{}}
	for i := range pl.Actions {
		if pl.Actions[i].Kind == plan.Lift { // it is part of a restore
			continue
		}
		pr.Actions = append(pr.Actions, e.previewAction(&pl.Actions[i]))
	}
	for i := range pl.Reported {
		pr.Reported = append(pr.Reported, e.text(&pl.Reported[i]))
	}
	for _, s := range e.sessions {
		if s.oneFamily != "" {
			pr.OneFamily = append(pr.OneFamily, s.Tunnel+": "+s.oneFamily)
		}
		pr.Unenforceable = append(pr.Unenforceable, s.unfit...)
		pr.Notes = append(pr.Notes, s.notes...)
	}
	return pr
}

func (e *Enforcer) previewAction(a *plan.Action) PreviewAction {
	r := &a.Route
	pa := PreviewAction{Kind: a.Kind.String(), Route: e.text(r), Reason: a.Why,
		Links: []string{}, Default: r.Dst.Bits() == 0, Connected: r.Connected()}
	switch a.Kind {
	case plan.Remove:
		pa.Reason = a.Verdict.Explain(e.name)
	case plan.Restore:
		pa.Reason = "no conflict any more"
	}
	for hop := range r.Hops() {
		if hop.Link != 0 {
			pa.Links = append(pa.Links, e.name(hop.Link))
		}
	}
	return pa
}

// Recovered is what Recover did, each route in words.
type Recovered struct {
	Restored  []string `json:"restored"`
	Forgotten []string `json:"forgotten"`
	Withdrawn []string `json:"withdrawn"`
	Pending   []string `json:"pending"` // could not be given back now; still in the journal
}

// Recover gives back what a crash left in the journal and withdraws routes of
// our own that it left in the table. No Enforcer may be running.
func Recover(ctx context.Context, sys System, j Journal, opt Options) (Recovered, error) {
	e := New(sys, j, opt)
	rec := Recovered{Restored: []string{}, Forgotten: []string{}, Withdrawn: []string{}, Pending: []string{}}
	e.done = func(a *plan.Action) { rec.add(a, e.text(&a.Route)) }
	if err := e.load(ctx); err != nil {
		return rec, err
	}
	_, err := e.settleTable(ctx)
	for h := range e.held.all() {
		rec.Pending = append(rec.Pending, e.text(&h.Route))
	}
	return rec, err
}

func (rec *Recovered) add(a *plan.Action, text string) {
	switch a.Kind {
	case plan.Restore:
		rec.Restored = append(rec.Restored, text)
	case plan.Forget:
		rec.Forgotten = append(rec.Forgotten, text)
	case plan.Withdraw:
		rec.Withdrawn = append(rec.Withdrawn, text)
	}
}
