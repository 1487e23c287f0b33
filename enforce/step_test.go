package enforce

import (
	"context"
	"reflect"
	"strings"
	"unsafe"

	"github.com/culvert-project/culvert/enforce/plan"
)

// Stepper drives an Enforcer by single steps, as its loop and the System's watch would
// do it at any time, without a goroutine and without a clock. It can be copied as it
// stands, and says its state as bytes: that is what the model check needs.
type Stepper struct {
	e      *Enforcer
	told   []Event // answered on the edge path, and not taken in yet
	wanted bool    // a reading of the table is wanted
}

// NewStepper returns an Enforcer that has not loaded anything yet.
func NewStepper(sys System, j Journal, opt Options) *Stepper {
	return &Stepper{e: New(sys, j, opt)}
}

// after notes what a step left behind: timers are not waited for here.
func (s *Stepper) after() {
	if s.e.pace.timer != nil {
		s.wanted = true
		s.e.pace.stop()
	}
	for {
		select {
		case ev := <-s.e.sink.Events():
			s.told = append(s.told, ev)
		case <-s.e.sink.DirtyC():
			s.wanted = true
		default:
			return
		}
	}
}

// Load takes over what the last process left, as Run does before it watches.
func (s *Stepper) Load(ctx context.Context) error { defer s.after(); return s.e.load(ctx) }

// Open opens a session.
func (s *Stepper) Open(ctx context.Context, o Session) (SessionStatus, error) {
	defer s.after()
	return s.e.open(ctx, o)
}

// Close closes one.
func (s *Stepper) Close(ctx context.Context, tunnel string) (SessionStatus, error) {
	defer s.after()
	return s.e.close(ctx, tunnel)
}

// Edge judges one announced route.
func (s *Stepper) Edge(change Change, r *plan.Route) Answer { return s.e.edge(change, r) }

// Tell takes what the edge path did; Event takes the oldest of that in.
func (s *Stepper) Tell(ev Event) { s.e.sink.Tell(ev); s.after() }

// Hint is what the watch says of what is no route.
func (s *Stepper) Hint(why string, urgent bool) {
	if urgent {
		s.e.sink.Hurry(why)
	} else {
		s.e.sink.Dirty(why)
	}
	s.after()
}

// Told returns how many events wait.
func (s *Stepper) Told() int { return len(s.told) }

// Event takes the oldest waiting event in.
func (s *Stepper) Event(ctx context.Context) {
	defer s.after()
	ev := s.told[0]
	s.told = s.told[1:]
	s.e.serve(ctx, ev)
}

// Wanted reports whether a reading of the table is wanted.
func (s *Stepper) Wanted() bool { return s.wanted }

// Level reads the table and makes it right.
func (s *Stepper) Level(ctx context.Context) {
	defer s.after()
	s.wanted = false
	s.e.level(ctx, "step")
}

// Finish ends as Run does.
func (s *Stepper) Finish(ctx context.Context) error {
	for len(s.told) > 0 {
		s.Event(ctx)
	}
	defer s.after()
	return s.e.finish(ctx)
}

// Policy returns what is judged by.
func (s *Stepper) Policy() *plan.Policy { return s.e.policy() }

// Held returns the held routes.
func (s *Stepper) Held() (out []plan.Route) {
	for h := range s.e.held.all() {
		out = append(out, h.Route)
	}
	return out
}

// Status is [Enforcer.Status].
func (s *Stepper) Status() (out Status) {
	held := s.e.heldBySession()
	for _, o := range s.e.sessions {
		out.Sessions = append(out.Sessions, s.e.statusWith(o, held[o]))
	}
	return out
}

// Totals returns what has been counted, of all sessions and of none.
func (s *Stepper) Totals() Totals { return s.e.totals.totals() }

// Clone returns an independent copy over another System and Journal.
func (s *Stepper) Clone(sys System, j Journal) *Stepper {
	c := copier{seen: map[place]reflect.Value{}}
	c.stands(s.e.sys, sys)
	c.stands(s.e.journal, j)
	out := &Stepper{}
	c.copy(reflect.ValueOf(out).Elem(), reflect.ValueOf(s).Elem())
	for _, later := range c.later { // what the edge path reads points into what the loop owns
		later()
	}
	return out
}

// copier copies values deeply, unexported fields too. What never changes is shared.
type copier struct {
	seen  map[place]reflect.Value
	later []func()
}

// place is where a value of a type lies: a struct and its first field share the address.
type place struct {
	at  unsafe.Pointer
	typ reflect.Type
}

// stands makes what one interface points to the copy of what another does.
func (c *copier) stands(was, is any) {
	w := reflect.ValueOf(was)
	c.seen[place{w.UnsafePointer(), w.Type().Elem()}] = reflect.ValueOf(is)
}

// shared are the types that are never changed once they are made.
var shared = map[reflect.Type]bool{
	reflect.TypeFor[*plan.Policy]():       true,
	reflect.TypeFor[*plan.Entry]():        true,
	reflect.TypeFor[*limitedLog]():        true,
	reflect.TypeFor[error]():              true,
	reflect.TypeFor[chan struct{}]():      true,
	reflect.TypeFor[func(*plan.Action)](): true,
}

var flats = map[reflect.Type]bool{}

// flat reports whether a plain assignment copies a type.
func flat(t reflect.Type) bool {
	if known, ok := flats[t]; ok {
		return known
	}
	flats[t] = isFlat(t)
	return flats[t]
}

func isFlat(t reflect.Type) bool {
	if shared[t] {
		return true
	}
	switch t.PkgPath() {
	case "net/netip", "time":
		return true
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Interface, reflect.Slice, reflect.Map, reflect.Chan, reflect.UnsafePointer:
		return false
	case reflect.Array:
		return flat(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if !flat(t.Field(i).Type) {
				return false
			}
		}
	}
	return true
}

var deeps = map[reflect.Type][]int{}

// deepFields are the fields of a struct that an assignment does not copy.
func deepFields(t reflect.Type) []int {
	out, known := deeps[t]
	if !known {
		for i := range t.NumField() {
			if !flat(t.Field(i).Type) {
				out = append(out, i)
			}
		}
		deeps[t] = out
	}
	return out
}

var (
	tallyType = reflect.TypeFor[tally]()
	tallies   = map[reflect.Type][]int{}
)

// talliesIn are the fields of a struct that are tallies.
func talliesIn(t reflect.Type) []int {
	out, known := tallies[t]
	if !known && t.Kind() == reflect.Struct {
		for i := range t.NumField() {
			if t.Field(i).Type == tallyType {
				out = append(out, i)
			}
		}
		tallies[t] = out
	}
	return out
}

// open lets a value be written that was reached through an unexported field.
func open(v reflect.Value) reflect.Value {
	return reflect.NewAt(v.Type(), v.Addr().UnsafePointer()).Elem()
}

func (c *copier) copy(dst, src reflect.Value) {
	dst, src = open(dst), open(src)
	switch t := src.Type(); {
	case t == reflect.TypeFor[pacer]():
		dst.SetZero()
	case flat(t):
		dst.Set(src)
	case isAtomicPointer(t):
		c.later = append(c.later, func() {
			from := src.Addr().MethodByName("Load").Call(nil)[0]
			was, is := reflect.New(from.Type()).Elem(), reflect.New(from.Type()).Elem()
			was.Set(from)
			c.copy(is, was)
			dst.Addr().MethodByName("Store").Call([]reflect.Value{is})
		})
	case t.Kind() == reflect.Struct:
		dst.Set(src)
		for _, i := range deepFields(t) {
			c.copy(dst.Field(i), src.Field(i))
		}
	case t.Kind() == reflect.Pointer:
		c.pointer(dst, src)
	case t.Kind() == reflect.Interface:
		if !src.IsNil() && src.Elem().Kind() == reflect.Pointer {
			if to, ok := c.seen[place{src.Elem().UnsafePointer(), src.Elem().Type().Elem()}]; ok {
				dst.Set(to)
				return
			}
		}
		dst.Set(src)
	case t.Kind() == reflect.Slice:
		c.slice(dst, src)
	case t.Kind() == reflect.Map:
		c.aMap(dst, src)
	case t.Kind() == reflect.Chan:
		dst.Set(reflect.MakeChan(t, min(src.Cap(), 4))) // what was in it has been taken: see after
	}
}

func isAtomicPointer(t reflect.Type) bool {
	return t.PkgPath() == "sync/atomic" && strings.HasPrefix(t.Name(), "Pointer[")
}

func (c *copier) pointer(dst, src reflect.Value) {
	if src.IsNil() {
		return
	}
	at := place{src.UnsafePointer(), src.Type().Elem()}
	if to, ok := c.seen[at]; ok {
		dst.Set(to)
		return
	}
	if t, ok := open(src).Interface().(*tally); ok && t.owner != nil { // it lies in its owner
		var owner *session
		c.copy(reflect.ValueOf(&owner).Elem(), reflect.ValueOf(&t.owner).Elem())
		if to, ok := c.seen[at]; ok {
			dst.Set(to)
			return
		}
	}
	to := reflect.New(src.Type().Elem())
	c.seen[at] = to
	for _, i := range talliesIn(src.Type().Elem()) { // others point at these
		c.seen[place{src.Elem().Field(i).Addr().UnsafePointer(), tallyType}] = open(to.Elem().Field(i)).Addr()
	}
	c.copy(to.Elem(), src.Elem())
	dst.Set(to)
}

func (c *copier) slice(dst, src reflect.Value) {
	if src.IsNil() {
		return
	}
	dst.Set(reflect.MakeSlice(src.Type(), src.Len(), src.Len()))
	if flat(src.Type().Elem()) {
		reflect.Copy(dst, src)
		return
	}
	for i := range src.Len() {
		c.copy(dst.Index(i), src.Index(i))
	}
}

func (c *copier) aMap(dst, src reflect.Value) {
	if src.IsNil() {
		return
	}
	dst.Set(reflect.MakeMapWithSize(src.Type(), src.Len()))
	for it := src.MapRange(); it.Next(); {
		from, to := reflect.New(src.Type().Elem()).Elem(), reflect.New(src.Type().Elem()).Elem()
		from.Set(it.Value())
		if flat(src.Type().Elem()) {
			to = from
		} else {
			c.copy(to, from)
		}
		dst.SetMapIndex(it.Key(), to)
	}
}
