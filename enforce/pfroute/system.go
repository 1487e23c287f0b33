package pfroute

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// System is the routing of a Mac. It implements enforce.System.
type System struct {
	k    kernel
	now  func() time.Time
	poll time.Duration
	pid  uint32
	seq  atomic.Uint32
	mu   sync.Mutex // guards nothing but the order of changes: one at a time
}

func newSystem(k kernel) *System {
	return &System{k: k, now: time.Now, poll: pollEvery, pid: uint32(os.Getpid())}
}

// Close releases what New opened.
func (s *System) Close() error { return nil }

var _ enforce.System = (*System)(nil)

// Binding returns what a journal of this boot is bound to.
func (s *System) Binding() (enforce.Binding, error) {
	boot, err := s.k.boot()
	if err != nil {
		return enforce.Binding{}, fmt.Errorf("read boot id: %w", err)
	}
	return enforce.Binding{Boot: boot}, nil
}

// errBytes: the kernel's answer is not what the headers say it should be.
var errBytes = errors.New("malformed message")

// links reads the interfaces.
func (s *System) links() (links, error) {
	b, err := s.k.interfaces()
	if err != nil {
		return nil, fmt.Errorf("read interfaces: %w", err)
	}
	ls, ok := parseLinks(b)
	if !ok {
		return nil, fmt.Errorf("read interfaces: %w", errBytes)
	}
	return ls, nil
}

// read takes the table and the interfaces. The kernel writes the table under
// one lock, so it is whole; it grew meanwhile when it does not fit.
func (s *System) read() ([]entry, links, error) {
	ls, err := s.links()
	if err != nil {
		return nil, nil, err
	}
	b, err := s.k.routes()
	if errors.Is(err, syscall.ENOMEM) {
		err = fmt.Errorf("%w: %w", enforce.ErrInterrupted, err)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read routes: %w", err)
	}
	list, ok := entries(b, ls, s.now())
	if !ok {
		return nil, nil, fmt.Errorf("read routes: %w", errBytes)
	}
	return list, ls, nil
}

// Table implements enforce.System.
func (s *System) Table(ctx context.Context) iter.Seq2[plan.Route, error] {
	return func(yield func(plan.Route, error) bool) {
		list, _, err := s.read()
		for i := range list {
			if ctx.Err() != nil || !yield(list[i].Route, nil) {
				break
			}
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			yield(plan.Route{}, err)
		}
	}
}

// Facts implements enforce.System.
func (s *System) Facts(context.Context) (enforce.Facts, error) {
	ls, err := s.links()
	if err != nil {
		return enforce.Facts{}, err
	}
	up, err := s.k.uptime()
	if err != nil {
		return enforce.Facts{}, fmt.Errorf("read uptime: %w", err)
	}
	return enforce.Facts{Links: ls.plan(), Uptime: up}, nil
}
