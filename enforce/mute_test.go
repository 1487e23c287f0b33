package enforce_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
)

// TestNoIPv6: a tunnel without IPv6 fails a session that protects IPv6 only where another
// interface has it. Where none has it nothing can leave, and status says just that.
func TestNoIPv6(t *testing.T) {
	mute := func(tb *enforcetest.Table, index uint32) error { return tb.SetMute6(index, true) }
	for _, before := range []bool{true, false} {
		t.Run(map[bool]string{true: "before the session", false: "while it is open"}[before], func(t *testing.T) {
			sys := newHost(t)
			e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
			if !before {
				open(t, e, split)
			}
			do(t, sys, 0, func(tb *enforcetest.Table) error { return mute(tb, tun0) })
			if before {
				open(t, e, split)
			}
			eventually(t, "eth0 has IPv6", func() bool {
				st := status(t, e)
				return st.State == enforce.Failed && strings.Contains(st.Error, "there is no IPv6 on tun0, and eth0 has it: packets to fd31::/32 do not go into the tunnel") &&
					len(st.Notes) == 0
			})
			add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
			eventually(t, "IPv4 is protected all the same", func() bool { return leavesBy(sys, "172.31.5.1") == tun0 })
			do(t, sys, 0, func(tb *enforcetest.Table) error { return mute(tb, eth0) })
			eventually(t, "no interface has it", func() bool {
				st := status(t, e)
				return st.State == enforce.Enforcing && st.Error == "" && slices.ContainsFunc(st.Notes, func(text string) bool {
					return text == "fd31::/32: there is no IPv6 on tun0, nor on any other interface: packets to it go nowhere"
				})
			})
			do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.SetMute6(tun0, false) })
			eventually(t, "the tunnel has it again", func() bool {
				st := status(t, e)
				return st.State == enforce.Enforcing && leavesBy(sys, "fd31::1") == tun0 && !slices.ContainsFunc(st.Notes, func(text string) bool {
					return strings.Contains(text, "no IPv6")
				})
			})
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}
