package enforcetest_test

import (
	"context"
	"errors"
	"iter"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// broken is a System with one defect, by overriding one method or another.
type broken struct {
	enforce.System
	watch func(s enforce.System, ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error
	apply func(s enforce.System, ctx context.Context, actions []plan.Action) []error
	table func(r plan.Route, again func(plan.Route) bool) bool
	facts func(*enforce.Facts)
	deaf  bool // Table does not hear that its context ended
}

func (b broken) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	if b.watch == nil {
		return b.System.Watch(ctx, edge, sink, ready)
	}
	return b.watch(b.System, ctx, edge, sink, ready)
}

func (b broken) Apply(ctx context.Context, actions []plan.Action) []error {
	if b.apply == nil {
		return b.System.Apply(ctx, actions)
	}
	return b.apply(b.System, ctx, actions)
}

func (b broken) Table(ctx context.Context) iter.Seq2[plan.Route, error] {
	if b.deaf {
		ctx = context.Background()
	}
	if b.table == nil {
		return b.System.Table(ctx)
	}
	return func(yield func(plan.Route, error) bool) {
		for r, err := range b.System.Table(ctx) {
			if err != nil {
				yield(r, err)
				return
			}
			if !b.table(r, func(r plan.Route) bool { return yield(r, nil) }) {
				return
			}
		}
	}
}

func (b broken) Facts(ctx context.Context) (enforce.Facts, error) {
	f, err := b.System.Facts(ctx)
	if b.facts != nil {
		b.facts(&f)
	}
	return f, err
}

// onEach changes each action before it is applied.
func onEach(change func(*plan.Action)) func(enforce.System, context.Context, []plan.Action) []error {
	return func(s enforce.System, ctx context.Context, actions []plan.Action) []error {
		changed := append([]plan.Action(nil), actions...)
		for i := range changed {
			change(&changed[i])
		}
		return s.Apply(ctx, changed)
	}
}

// onEdge puts something between Watch and the edge.
func onEdge(wrap func(enforce.Edge) enforce.Edge) func(enforce.System, context.Context, enforce.Edge, *enforce.Sink, func()) error {
	return func(s enforce.System, ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
		return s.Watch(ctx, wrap(edge), sink, ready)
	}
}

// defects name, for each case of Conform, a System that must fail it.
var defects = map[string]broken{
	"a change made when ready returns is noticed": {watch: func(s enforce.System, ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
		ready()
		return s.Watch(ctx, edge, sink, func() {})
	}},
	"every added and deleted route reaches the edge": {watch: onEdge(func(edge enforce.Edge) enforce.Edge {
		return func(c enforce.Change, r *plan.Route) enforce.Answer {
			if c == enforce.Deleted {
				return enforce.Answer{}
			}
			return edge(c, r)
		}
	})},
	"an edge delete takes that route alone": {watch: onEdge(func(edge enforce.Edge) enforce.Edge {
		return func(c enforce.Change, r *plan.Route) enforce.Answer {
			a := edge(c, r)
			a.Delete = false
			return a
		}
	})},
	"an edge put comes before its delete": {watch: onEdge(func(edge enforce.Edge) enforce.Edge {
		return func(c enforce.Change, r *plan.Route) enforce.Answer {
			a := edge(c, r)
			a.Put = nil
			return a
		}
	})},
	"an untold event is not told": {watch: onEdge(func(edge enforce.Edge) enforce.Edge {
		return func(c enforce.Change, r *plan.Route) enforce.Answer {
			a := edge(c, r)
			a.Tell = true
			return a
		}
	})},
	"an event's route can be restored": {apply: onEach(func(a *plan.Action) {
		if a.Kind == plan.Restore {
			a.Route.Metric += 7
		}
	})},
	"remove takes that route alone, twice":            {apply: removeByPrefix},
	"a metric 0 twin that is gone spares its sibling": {apply: removeByPrefix},
	"a leg leaves its multipath route":                {apply: removeByPrefix},
	"put, restore, remove and withdraw are idempotent": {apply: func(s enforce.System, ctx context.Context, actions []plan.Action) []error {
		errs := s.Apply(ctx, actions)
		for i := range actions {
			if actions[i].Kind == plan.Put {
				errs[i] = os.ErrExist
			}
		}
		return errs
	}},
	"that there was nothing to do is told": {apply: func(s enforce.System, ctx context.Context, actions []plan.Action) []error {
		errs := s.Apply(ctx, actions)
		for i := range errs {
			if errors.Is(errs[i], enforce.ErrAlready) {
				errs[i] = nil
			}
		}
		return errs
	}},
	"actions are carried out in order": {apply: func(s enforce.System, ctx context.Context, actions []plan.Action) []error {
		errs := make([]error, len(actions))
		for i := len(actions) - 1; i >= 0; i-- {
			errs[i] = s.Apply(ctx, actions[i:i+1])[0]
		}
		return errs
	}},
	"one action's error is its own": {apply: func(s enforce.System, ctx context.Context, actions []plan.Action) []error {
		errs := s.Apply(ctx, actions)
		clear(errs)
		return errs
	}},
	"own routes are known again": {table: func(r plan.Route, yield func(plan.Route) bool) bool {
		r.Origin = plan.Foreign
		return yield(r)
	}},
	"restore gives the identical table": {apply: onEach(func(a *plan.Action) {
		if a.Kind == plan.Restore {
			a.Route.Raw = ""
		}
	})},
	"restore keeps the place in the slot": {apply: onEach(func(a *plan.Action) {
		if a.Kind == plan.Restore {
			a.First = false
		}
	})},
	"put first goes ahead":        {apply: onEach(func(a *plan.Action) { a.First = false })},
	"restore spends the lifetime": {apply: onEach(func(a *plan.Action) { a.Age = 0 })},
	"a nexthop object turned blackhole does not hinder": {apply: func(s enforce.System, ctx context.Context, actions []plan.Action) []error {
		if actions[0].Kind == plan.Remove && actions[0].Route.Type == plan.Blackhole {
			return make([]error, len(actions)) // as if it were gone
		}
		return s.Apply(ctx, actions)
	}},
	"a restored gateway needs no connected route": {apply: func(s enforce.System, ctx context.Context, actions []plan.Action) []error {
		errs := s.Apply(ctx, actions)
		for i := range actions {
			if actions[i].Kind == plan.Restore {
				errs[i] = enforce.ErrNotNow
			}
		}
		return errs
	}},
	"table yields main only, each route once": {table: func(r plan.Route, yield func(plan.Route) bool) bool {
		more := yield(r)
		return more && yield(r)
	}},
	"table follows a canceled context": {deaf: true},
	"table is whole while it changes": {table: func(r plan.Route, yield func(plan.Route) bool) bool {
		return r.Dst.Addr().Is4() && r.Dst.Addr().As4()[3] == 50 || yield(r)
	}},
	"link, address, rule and nexthop changes are dirty": {watch: func(s enforce.System, ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
		return s.Watch(ctx, edge, enforce.NewSink(), ready)
	}},
	"an overrun sink is dirty": {watch: func(s enforce.System, ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
		return s.Watch(ctx, edge, enforce.NewSink(), ready)
	}},
	"a canceled watch returns nil and may begin again": {watch: func(s enforce.System, ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
		_ = s.Watch(ctx, edge, sink, ready)
		return ctx.Err()
	}},
	"facts list the links": {facts: func(f *enforce.Facts) {
		for i := range f.Links {
			f.Links[i].Up = true
		}
	}},
}

// removeByPrefix deletes the first route to the destination, as one who names
// too little does.
func removeByPrefix(s enforce.System, ctx context.Context, actions []plan.Action) []error {
	changed := append([]plan.Action(nil), actions...)
	for i := range changed {
		if changed[i].Kind != plan.Remove && changed[i].Kind != plan.Withdraw {
			continue
		}
		for r, err := range s.Table(ctx) {
			if err == nil && r.Dst == changed[i].Route.Dst {
				changed[i].Route = r
				break
			}
		}
	}
	return s.Apply(ctx, changed)
}

const defectEnv = "ENFORCETEST_DEFECT"

// TestDefect is what TestConformCatches runs in processes of its own.
func TestDefect(t *testing.T) {
	name := os.Getenv(defectEnv)
	if name == "" {
		t.Skip("run by TestConformCatches")
	}
	enforcetest.Patience(t, 200)
	enforcetest.Conform(t, func(t *testing.T) enforcetest.Lab {
		lab := newLab(t)
		b := defects[name]
		b.System = lab.System
		lab.System = b
		return lab
	})
}

// TestConformCatches proves that each case of Conform can fail: for each there
// is a defect that it finds.
func TestConformCatches(t *testing.T) {
	for name := range defects {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slug := "^" + strings.ReplaceAll(name, " ", "_") + "$"
			cmd := exec.Command(os.Args[0], "-test.run", "TestDefect/"+slug, "-test.timeout", "60s")
			cmd.Env = append(os.Environ(), defectEnv+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestDefect/") {
				t.Errorf("the defect was not found: %v\n%s", err, out)
			}
		})
	}
}
