package winroute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// Apply implements enforce.System.
func (s *System) Apply(ctx context.Context, actions []plan.Action) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, len(actions))
	for i := range actions {
		if errs[i] = ctx.Err(); errs[i] == nil {
			errs[i] = s.apply(&actions[i])
		}
	}
	return errs
}

func (s *System) apply(a *plan.Action) error {
	switch a.Kind {
	case plan.Put:
		return s.put(&a.Route)
	case plan.Restore:
		return s.restore(&a.Route, a.Age)
	case plan.Remove, plan.Lift, plan.Withdraw:
		return s.remove(&a.Route)
	}
	return nil
}

// errTaken: Windows knows a route by its destination, interface and next hop,
// and another of these stands.
var errTaken = errors.New("another route has its place")

// want makes the row of a route that is to be added and checks what it needs.
func (s *System) want(p *plan.Route) (row, error) {
	sc, err := s.scene()
	if err != nil {
		return nil, err
	}
	l := sc.by(p.Hop.Link)
	if l == nil {
		return nil, enforce.ErrGone
	}
	if !l.Up {
		return nil, enforce.ErrNotNow
	}
	r, ok := sc.build(p, l)
	if !ok {
		return nil, errBytes
	}
	return r, nil
}

// standing returns the route that has r's place, or nil.
func (s *System) standing(r row) (row, error) {
	old := slices.Clone(r)
	err := s.k.entry(old)
	if absent(err) {
		return nil, nil
	}
	return old, err
}

func absent(err error) bool { return errors.Is(err, errNotFound) || errors.Is(err, errFileNotFound) }

func (s *System) put(p *plan.Route) error {
	r, err := s.want(p)
	if err == nil {
		err = s.create(r, p.Origin == plan.Own)
	}
	return addError(err, p)
}

// create adds a row that may be there already. Another's is no substitute for
// ours: it is not withdrawn with us. A protocol that programs may not use is
// exchanged for the one they may: better a route by another name than none.
func (s *System) create(r row, own bool) error {
	k, _ := r.key()
	err := s.k.create(r)
	if errors.Is(err, errInvalidParameter) && r.protocol() != protoNetMgmt {
		native.PutUint32(r[offProtocol:], protoNetMgmt)
		if err = s.k.create(r); err == nil && own {
			s.own[k] = true
		}
	}
	if !errors.Is(err, errObjectExists) {
		return err
	}
	old, err := s.standing(r)
	if err == nil && (old == nil || own && old.protocol() != OwnProtocol && !s.own[k]) {
		return fmt.Errorf("%w: %w", enforce.ErrNotNow, errTaken)
	}
	return cmp.Or(err, enforce.ErrAlready)
}

// restore gives a route back. In the place of ours it is put after that is gone;
// where its owner added it again, whatever its metric, that one stays.
func (s *System) restore(p *plan.Route, age uint32) error {
	if p.Expires != 0 && age >= p.Expires {
		return nil // its lifetime ended: the system would have dropped it
	}
	r, err := s.want(p)
	if err != nil {
		return addError(err, p)
	}
	if p.Expires != 0 {
		r.live(p.Expires - age)
	}
	k, _ := r.key()
	old, err := s.standing(r)
	if err == nil && old != nil && (old.protocol() == OwnProtocol || s.own[k]) {
		err = s.destroy(old)
	}
	if err == nil {
		err = s.create(r, false)
	}
	return addError(err, p)
}

func addError(err error, p *plan.Route) error {
	switch {
	case err == nil, errors.Is(err, enforce.ErrAlready):
		return err
	case absent(err):
		return fmt.Errorf("add %v: %w: %w", p.Dst, enforce.ErrGone, err)
	}
	return fmt.Errorf("add %v: %w", p.Dst, err)
}

// remove deletes the very route, if it stands: one of its key that differs in
// metric or protocol is another. Between the look and the deletion Windows
// offers no hold; the next reading would find a mistake.
func (s *System) remove(p *plan.Route) error {
	r, ok := again(p.Raw)
	if !ok {
		return fmt.Errorf("delete %v: %w", p.Dst, errBytes)
	}
	old, err := s.standing(r)
	switch {
	case err == nil && (old == nil || !old.same(r)):
		return enforce.ErrAlready
	case err == nil:
		err = s.destroy(old)
	}
	if err != nil {
		return fmt.Errorf("delete %v: %w", p.Dst, err)
	}
	return nil
}

// destroy deletes a row that may be gone already.
func (s *System) destroy(r row) error {
	err := s.k.delete(r)
	if err != nil && !absent(err) {
		return err
	}
	k, _ := r.key()
	delete(s.own, k)
	return nil
}
