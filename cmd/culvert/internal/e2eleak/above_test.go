//go:build linux

package e2eleak

import (
	"fmt"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// TestMacvlanOfContainer: a container that has a macvlan on the client's network leaks by it, also when the number of its
// interface is that of the tunnel, or of an excluded interface, of the client.
func TestMacvlanOfContainer(t *testing.T) {
	const dst = "172.31.1.10"
	for _, tt := range []struct {
		name   string
		number int // of the container's interface; 0 is that of
		as     string
	}{
		{"a number of its own", 7777, ""},
		{"the tunnel's number", 0, "tun0"},
		{"an excluded interface's number", 0, "docker0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needs(t)
			s := newStub(t)
			bridge(t, s)
			guest := testenv.Namespace(t, "macvlan")
			number := tt.number
			if number == 0 {
				link := s.Client.IP(t, "-o link show dev "+tt.as)
				if _, err := fmt.Sscanf(link, "%d:", &number); err != nil {
					t.Fatalf("%q: %v", link, err)
				}
			}
			s.Client.IP(t, fmt.Sprintf("link add link eth0 name mv0 netns %s index %d type macvlan mode bridge", guest.Name(), number))
			if link := guest.IP(t, "-o link show dev mv0"); !strings.HasPrefix(link, fmt.Sprint(number, ":")) {
				t.Fatalf("the number is not %d: %s", number, link)
			}
			guest.AddAddr(t, "mv0", testenv.Prefixes("10.77.0.40/24")...)
			guest.LinkUp(t, "mv0")
			guest.IP(t, "route add 172.31.0.0/16 dev mv0")
			d := s.daemon(t, "--on-leak", "drop", "--exclude-interface", "docker0")
			c := s.Leaks(t, filter(dst))
			speech{dst: dst, count: gatewayBurst}.say(t, guest)
			if got := s.settled(t, gatewayBurst); got.Packets != gatewayBurst || got.Dropped != gatewayBurst {
				t.Errorf("counted %+v of %d", got, gatewayBurst)
			}
			if out := exact(t, c); out.Packets != 0 {
				t.Errorf("%d of %d got out", out.Packets, gatewayBurst)
			}
			stopped(t, d)
		})
	}
}
