package enforce_test

import (
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"time"
)

// explored is what an exploration of a world has found.
type explored struct {
	depth       int  // every order of the operations to this depth was tried
	more        bool // and some of the next
	states      int
	transitions int
	wrong       []violation
}

// bounds are how far an exploration goes. Only by time does it differ from run to run.
type bounds struct {
	states, depth int
	time          time.Duration
}

// violation is a state that must not be, and the shortest way there.
type violation struct {
	trace string
	text  string
}

// node is a state that was reached.
type node struct {
	from *node
	op   string
}

func (n *node) trace() (out []string) {
	for ; n.from != nil; n = n.from {
		out = append(out, n.op)
	}
	slices.Reverse(out)
	return out
}

// explore tries every order of a world's operations, the shortest first, until so many
// states are known, or all to a depth. A state that must not be is not gone on from.
func explore(w *world, to bounds, muted func(string) bool) (out explored) {
	start := time.Now()
	seed := maphash.MakeSeed()
	known := map[uint64]bool{}
	begin := newMachine(w)
	known[maphash.Bytes(seed, begin.key())] = true
	ops := opsOf(w.ops)
	layer := []*node{{}}
	for len(layer) > 0 && out.depth < to.depth {
		var next []*node
		for _, n := range layer {
			if len(known) >= to.states || to.time > 0 && time.Since(start) > to.time {
				out.more, out.states = true, len(known)
				return out
			}
			m, wrong := reach(w, n.trace())
			if wrong != "" {
				panic("a state that was reached is not reached again: " + strings.Join(n.trace(), " ; ") + ": " + wrong)
			}
			for _, op := range ops {
				out.expand(m, n, op, func(c *machine, op string) {
					key := maphash.Bytes(seed, c.key())
					if known[key] {
						return
					}
					known[key] = true
					o := &node{from: n, op: op}
					if wrong := slices.DeleteFunc(c.judged(), muted); len(wrong) > 0 {
						for _, text := range wrong {
							out.wrong = append(out.wrong, violation{strings.Join(o.trace(), " ; "), text})
						}
						return
					}
					next = append(next, o)
				})
			}
		}
		layer = next
		out.depth++
	}
	out.states = len(known)
	return out
}

// mostVariants bounds in how many ways one operation may be died in, or acted in.
const mostVariants = 40

// expand does an operation in every way that the world has for it.
func (x *explored) expand(m *machine, n *node, op string, reached func(*machine, string)) {
	try := func(op string) (died bool) {
		c := m.clone()
		died, ok := c.attempt(op)
		if ok {
			x.transitions++
			reached(c, op)
		}
		return died && ok
	}
	base, _, inside := strings.Cut(op, "@")
	if inside { // OP@*=OTHER: at every moment of it
		_, other, _ := strings.Cut(op, "=")
		for spot := 1; spot < mostVariants; spot++ {
			c := m.clone()
			if _, ok := c.attempt(fmt.Sprintf("%s@%d=%s", base, spot, other)); !ok && c.k.spots < spot {
				return
			} else if ok {
				x.transitions++
				reached(c, fmt.Sprintf("%s@%d=%s", base, spot, other))
			}
		}
		return
	}
	try(op)
	if !m.w.deaths || m.s == nil {
		return
	}
	for k := 1; k < mostVariants && try(fmt.Sprintf("%s!%d", op, k)); k++ {
	}
}

// attempt is do that turns a panic into a fault.
func (m *machine) attempt(op string) (died, ok bool) {
	defer func() {
		if p := recover(); p != nil {
			m.fault, ok = fmt.Sprintf("PANIC: %v", p), true
		}
	}()
	return m.do(op)
}

func (m *machine) judged() (wrong []string) {
	defer func() {
		if p := recover(); p != nil {
			wrong = append(wrong, fmt.Sprintf("PANIC: %v", p))
		}
	}()
	if m.fault != "" {
		return []string{m.fault}
	}
	return m.check()
}

// kindOf is the word that a violation's text begins with.
func kindOf(wrong string) string {
	kind, _, _ := strings.Cut(wrong, ":")
	return kind
}

// reach does the operations of a trace.
func reach(w *world, trace []string) (*machine, string) {
	m := newMachine(w)
	for _, op := range trace {
		if _, ok := m.attempt(op); !ok {
			return m, "cannot be done: " + op
		}
		if m.fault != "" {
			return m, m.fault
		}
	}
	return m, ""
}

// shortest leaves out of a trace what is not needed for a violation of the same kind.
func shortest(w *world, v violation) violation {
	trace := opsOf(v.trace)
	for i := 0; i < len(trace); {
		less := slices.Delete(slices.Clone(trace), i, i+1)
		m, wrong := reach(w, less)
		all := []string{wrong}
		if wrong == "" {
			all = m.judged()
		}
		at := slices.IndexFunc(all, func(text string) bool { return kindOf(text) == kindOf(v.text) })
		if at >= 0 {
			trace, v.text, i = less, all[at], 0
			continue
		}
		i++
	}
	v.trace = strings.Join(trace, " ; ")
	return v
}
