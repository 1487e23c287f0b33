package winroute

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// System is the routing of a Windows machine. It implements enforce.System.
type System struct {
	k    kernel
	poll time.Duration

	mu  sync.Mutex   // guards own, and has changes made one at a time
	own map[key]bool // routes of ours that could not be marked
}

func newSystem(k kernel) *System {
	return &System{k: k, poll: pollEvery, own: map[key]bool{}}
}

// Close releases what New opened.
func (s *System) Close() error { return nil }

var _ enforce.System = (*System)(nil)

// Binding returns what a journal of this boot is bound to.
func (s *System) Binding() (enforce.Binding, error) {
	boot, err := s.k.boot()
	if err != nil {
		return enforce.Binding{}, fmt.Errorf("read boot time: %w", err)
	}
	return enforce.Binding{Boot: boot}, nil
}

// errBytes: the system's answer is not what the headers say it should be.
var errBytes = errors.New("malformed row")

// scene reads the surroundings.
func (s *System) scene() (scene, error) {
	links, err1 := s.k.links()
	addresses, err2 := s.k.addresses()
	interfaces, err3 := s.k.interfaces()
	if err := errors.Join(err1, err2, err3); err != nil {
		return scene{}, fmt.Errorf("read interfaces: %w", err)
	}
	sc, ok := parseScene(links, addresses, interfaces)
	if !ok {
		return scene{}, fmt.Errorf("read interfaces: %w", errBytes)
	}
	return sc, nil
}

// parse makes a plan.Route of a row, its Raw included.
func (s *System) parse(sc *scene, r row) (p plan.Route, ok bool) {
	if p, ok = sc.parse(r); !ok {
		return p, false
	}
	p.Raw = string(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, _ := r.key(); s.own[k] {
		p.Origin = plan.Own
	}
	return p, true
}

// rows reads the table.
func (s *System) rows() ([]row, error) {
	b, err := s.k.routes()
	if err != nil {
		return nil, fmt.Errorf("read routes: %w", err)
	}
	list, ok := rows[row](b, rowLen)
	if !ok {
		return nil, fmt.Errorf("read routes: %w", errBytes)
	}
	return list, nil
}

// Table implements enforce.System.
func (s *System) Table(ctx context.Context) iter.Seq2[plan.Route, error] {
	return func(yield func(plan.Route, error) bool) {
		sc, err1 := s.scene()
		list, err2 := s.rows()
		if err := errors.Join(err1, err2); err != nil {
			yield(plan.Route{}, err)
			return
		}
		for _, r := range list {
			if err := ctx.Err(); err != nil {
				yield(plan.Route{}, err)
				return
			}
			if p, ok := s.parse(&sc, r); ok && !yield(p, nil) {
				return
			}
		}
	}
}

// Facts implements enforce.System.
func (s *System) Facts(context.Context) (enforce.Facts, error) {
	sc, err := s.scene()
	if err != nil {
		return enforce.Facts{}, err
	}
	return enforce.Facts{Links: sc.plan(), Uptime: s.k.uptime()}, nil
}
