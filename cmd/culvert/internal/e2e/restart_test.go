//go:build linux

package e2e

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

// TestRestart kills the daemon and starts it again under a stream of packets.
// What was held stays out all along, whoever opened the session: not one packet
// leaves beside the tunnel.
func TestRestart(t *testing.T) {
	for name, byFlags := range map[string]bool{"session by up": false, "session by flags": true} {
		t.Run(name, func(t *testing.T) {
			needs(t)
			s := newStub(t)
			s.ip(t, "route add 172.31.1.0/24 via 10.77.0.66")
			flags := []string{"--tunnel", "tun0", "--protect", "172.31.0.0/16"}
			var own []string
			if byFlags {
				own = flags
			}
			d := s.prog.Daemon(t, own...)
			if !byFlags {
				s.prog.Must(t, append([]string{"up"}, flags...)...)
			}
			enforcing(t, s.prog)
			dst := netip.MustParseAddr(site)
			blast, filter := marked(dst)
			out, in := s.Leaks(t, filter), s.Tun.Count(filter)
			blast.Count, blast.Rate = 10000, 10000
			sent := make(chan testenv.Sent, 1)
			go func() {
				n, _ := s.Client.Blast(context.Background(), blast)
				sent <- n
			}()
			for range 3 {
				time.Sleep(100 * time.Millisecond)
				d.Kill()
				d = s.prog.Daemon(t, own...)
				enforcing(t, s.prog)
			}
			n := (<-sent).Packets
			in.Settle(200 * time.Millisecond)
			if leaked := out.Packets(); leaked != 0 || n == 0 || in.Packets() != uint64(n) {
				t.Errorf("sent %d, in the tunnel %d, leaked %d", n, in.Packets(), leaked)
			}
		})
	}
}
