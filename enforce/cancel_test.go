package enforce_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// cutShort is a System in the middle of whose first removals somebody asks for the end.
type cutShort struct {
	*enforcetest.System
	end func()
	cut int // actions that were left
}

func (s *cutShort) Apply(ctx context.Context, actions []plan.Action) []error {
	if s.end == nil || actions[0].Kind != plan.Remove {
		return s.System.Apply(ctx, actions)
	}
	errs := s.System.Apply(ctx, actions[:1])
	s.end()
	s.end = nil
	<-ctx.Done()
	for range actions[1:] {
		errs = append(errs, ctx.Err())
		s.cut++
	}
	return errs
}

// TestEndInTheMiddle: who asks for the end in the middle of many changes gets the table
// back, and no error for each that was left.
func TestEndInTheMiddle(t *testing.T) {
	const many = 50
	sys := newHost(t)
	for i := range many {
		add(t, sys, via(fmt.Sprintf("172.31.%d.0/24", i), "192.168.1.66", eth0))
	}
	before := sys.Text()
	var log bytes.Buffer
	s := &cutShort{System: sys}
	own := split
	own.Rearm = true
	ctx, cancel := context.WithCancel(t.Context())
	s.end = cancel
	e := enforce.New(s, &enforcetest.Journal{}, enforce.Options{Own: []enforce.Session{own}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err := e.Run(ctx); err != nil {
		t.Error(err)
	}
	if s.cut < many-2 {
		t.Fatalf("only %d changes were left", s.cut)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n > 0 {
		t.Errorf("%d errors:\n%s", n, log.String())
	}
	if after := sys.Text(); after != before {
		t.Errorf("after\n%s\nbefore\n%s", after, before)
	}
}
