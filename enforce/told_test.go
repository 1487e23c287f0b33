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

// TestRenameIsTold: while the tunnel has another name, another interface may take
// the one that it was opened with; its packets are not the tunnel's.
func TestRenameIsTold(t *testing.T) {
	sys := newHost(t)
	told := make(chan enforce.Protection, 100)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{OnPolicy: func(p enforce.Protection) { told <- p }})
	open(t, e, split)
	for _, name := range []string{"vpn0", "tun0"} {
		do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.Rename(tun0, name) })
		eventually(t, "the name "+name+" is told of", func() bool {
			var last enforce.Protection
			for len(told) > 0 {
				last = <-told
			}
			return len(last.Sessions) == 1 && last.Sessions[0].Renamed == (name != "tun0")
		})
	}
}
