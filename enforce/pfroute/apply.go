package pfroute

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// Apply implements enforce.System. A Put takes the place of a route only when
// that is among the removals of the same call.
func (s *System) Apply(ctx context.Context, actions []plan.Action) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, len(actions))
	going := removals(actions)
	for i := range actions {
		if errs[i] = ctx.Err(); errs[i] == nil {
			errs[i] = s.apply(&actions[i], going)
		}
	}
	return errs
}

func removals(actions []plan.Action) (out []plan.Route) {
	for i := range actions {
		if actions[i].Kind == plan.Remove {
			out = append(out, actions[i].Route)
		}
	}
	return out
}

func (s *System) apply(a *plan.Action, going []plan.Route) error {
	switch a.Kind {
	case plan.Put:
		return s.put(&a.Route, going)
	case plan.Restore:
		return s.restore(&a.Route, a.Age)
	case plan.Remove, plan.Lift, plan.Withdraw:
		return s.remove(&a.Route)
	}
	return nil
}

// errTaken: macOS has one route to a destination, and this is another.
var errTaken = errors.New("another route has its place")

// wanted is a route on its way into the table.
type wanted struct {
	entry
	list []entry
	link *link
}

// want reads the table for a route that is to be added and checks what it needs.
func (s *System) want(r *plan.Route) (w wanted, err error) {
	w.Route = *r
	list, ls, err := s.read()
	if err != nil {
		return w, err
	}
	w.list = list
	if r.Raw != "" {
		parseEntry(message(r.Raw), &w.entry, s.now())
		w.Route = *r
	}
	if r.Type != plan.Unicast {
		return w, nil
	}
	w.link = ls.by(r.Hop.Link)
	switch {
	case w.link == nil:
		return w, enforce.ErrGone
	case w.ifa.IsValid() && !w.link.holds(w.ifa):
		// The kernel deletes what uses an address along with it (in_ifadown,
		// bsd/netinet/in_rmx.c).
		return w, fmt.Errorf("%w: address %v", enforce.ErrGone, w.ifa)
	case !w.link.Up:
		return w, enforce.ErrNotNow
	}
	return w, nil
}

// inPlace returns what has the route's place, or nil.
func (w *wanted) inPlace() *entry { return find(w.list, w.at) }

func (s *System) put(r *plan.Route, going []plan.Route) error {
	w, err := s.want(r)
	if err != nil {
		return fmt.Errorf("add %v: %w", r.Dst, err)
	}
	old := w.inPlace()
	switch {
	case old == nil:
	case old.serves(r):
		return enforce.ErrAlready
	case !slices.ContainsFunc(going, old.Same):
		return fmt.Errorf("add %v: %w: %w", r.Dst, enforce.ErrNotNow, errTaken)
	default:
		// Between the two the destination goes by a shorter prefix; it went by
		// the route that is deleted until now.
		if err := s.delete(old); err != nil && !errors.Is(err, enforce.ErrAlready) {
			return err
		}
	}
	return s.add(&w, 0)
}

// serves reports whether a standing route is the one to put. Another's is no
// substitute for ours: it is not withdrawn with us.
func (e *entry) serves(r *plan.Route) bool {
	return e.Hop == r.Hop && e.Type == r.Type && (r.Origin != plan.Own || e.Origin == plan.Own)
}

// succeeds reports whether a standing route may be a newer copy by the same owner of
// one that was held, by whatever gateway: where there is room for one alone, it has
// taken over the place.
func (e *entry) succeeds(r *plan.Route) bool {
	return e.Slot() == r.Slot() && e.Hop.Link == r.Hop.Link && e.Protocol == r.Protocol && e.Type == r.Type
}

func (s *System) restore(r *plan.Route, age uint32) error {
	if r.Expires != 0 && age >= r.Expires {
		return nil // its lifetime ended: the kernel would have dropped it
	}
	w, err := s.want(r)
	if err != nil {
		return fmt.Errorf("restore %v: %w", r.Dst, err)
	}
	old := w.inPlace()
	switch {
	case old == nil:
	case old.Same(*r):
		return enforce.ErrAlready
	case old.Origin == plan.Own:
		if err := s.delete(old); err != nil && !errors.Is(err, enforce.ErrAlready) {
			return err
		}
	case old.succeeds(r):
		return fmt.Errorf("restore %v: %w: its owner added a newer one", r.Dst, enforce.ErrGone)
	default:
		return fmt.Errorf("restore %v: %w: %w", r.Dst, enforce.ErrNotNow, errTaken)
	}
	return s.add(&w, age)
}

// add sends the request that adds the route.
func (s *System) add(w *wanted, age uint32) error {
	seq, ok := s.seq.Add(1), true
	var m message
	if w.Raw == "" {
		m = buildOwn(&w.Route, w.link, seq)
	} else {
		m, ok = buildAdd(message(w.Raw), seq, s.expiry(&w.Route, age))
	}
	if !ok {
		return fmt.Errorf("add %v: %w", w.Dst, errBytes)
	}
	_, err := s.request(m, false)
	return addError(err, &w.Route)
}

// expiry is when what is left of a route's lifetime ends.
func (s *System) expiry(r *plan.Route, age uint32) uint32 {
	if r.Expires == 0 {
		return 0
	}
	return uint32(s.now().Unix()) + r.Expires - age
}

func addError(err error, r *plan.Route) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EEXIST), errors.Is(err, syscall.ENETUNREACH):
		return fmt.Errorf("add %v: %w: %w", r.Dst, enforce.ErrNotNow, err)
	case errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV):
		return fmt.Errorf("add %v: %w: %w", r.Dst, enforce.ErrGone, err)
	}
	return fmt.Errorf("add %v: %w", r.Dst, err)
}

// remove deletes the very route, if it stands.
func (s *System) remove(r *plan.Route) error {
	list, _, err := s.read()
	if err != nil {
		return fmt.Errorf("delete %v: %w", r.Dst, err)
	}
	var meant entry
	named := r.Raw != "" && parseEntry(message(r.Raw), &meant, s.now()) == parsed
	e := find(list, func(e *entry) bool { return e.Same(*r) && (!named || e.host == meant.host) })
	if e == nil {
		return enforce.ErrAlready
	}
	return s.delete(e)
}

// delete deletes what has the entry's place. The kernel looks at nothing else,
// and reports what it deleted: another route that came in the meantime is put
// back. It is ErrAlready when the entry is gone.
func (s *System) delete(e *entry) error {
	gone, err := s.request(buildDelete(e, s.seq.Add(1)), true)
	switch {
	case errors.Is(err, syscall.ESRCH):
		return enforce.ErrAlready
	case err != nil:
		return fmt.Errorf("delete %v: %w", e.Dst, err)
	}
	var victim entry
	if gone == nil || parseEntry(gone, &victim, s.now()) != parsed || (victim.Hop == e.Hop && victim.Type == e.Type) {
		return nil
	}
	m, _ := buildAdd(gone, s.seq.Add(1), native.Uint32(gone[offExpire:]))
	if _, err = s.request(m, false); err != nil {
		return fmt.Errorf("delete %v: put back the route that had replaced it: %w", e.Dst, err)
	}
	return enforce.ErrAlready
}

// echoTime bounds the wait for the kernel's report: it is queued before the
// write returns, unless the socket's buffer was full.
const echoTime = 100 * time.Millisecond

// request writes a message, whose failure the write itself tells, and with echo
// waits for the kernel's report of it; nil when that was lost.
func (s *System) request(m message, echo bool) (report message, err error) {
	sock, err := s.k.open()
	if err != nil {
		return nil, fmt.Errorf("open routing socket: %w", err)
	}
	defer sock.Close()
	if _, err := sock.Write(m); err != nil || !echo {
		return nil, err
	}
	_ = sock.SetReadDeadline(s.now().Add(echoTime))
	b := make([]byte, readSize)
	for {
		n, err := sock.Read(b)
		if err != nil {
			return nil, nil
		}
		got, _, ok := next(b[:n])
		if ok && got.isRoute() && got.pid() == s.pid && got.seq() == m.seq() && got.typ() == m.typ() {
			return slices.Clone(got), nil
		}
	}
}
