package enforce_test

import (
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
)

// TestAnotherTransportIsTold: whoever watches packets learns of a server's new
// protocol, though no route depends on it.
func TestAnotherTransportIsTold(t *testing.T) {
	sys := newHost(t)
	var last enforce.Protection
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{OnPolicy: func(p enforce.Protection) { last = p }})
	open(t, e, split)
	s := split
	s.Servers = []enforce.Server{{Addr: split.Servers[0].Addr, Proto: "tcp"}}
	open(t, e, s)
	if got := last.Sessions[0].Servers; len(got) != 1 || got[0].Proto != "tcp" {
		t.Errorf("told of %v", got)
	}
}
