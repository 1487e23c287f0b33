//go:build linux

package e2e

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

var churnFor = flag.Duration("churn", 40*time.Second, "how long TestChurn goes on")

// churn is all that goes on around a daemon in weeks, in a hurry. Each step
// takes back what it did, as far as the daemon has not. Its routes have
// protocol 99.
type churn struct {
	s     *stub
	steps int
	// wild steps are right only while a daemon lives to answer them.
	wild bool
}

// try gives lines to ip and does not mind which of them fail: the daemon, or its
// absence, has a say in it.
func (c *churn) try(t *testing.T, lines string) {
	t.Helper()
	cmd := c.s.Client.Command("ip", "-force", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(lines, "; ", "\n") + "\n")
	out, err := cmd.CombinedOutput()
	var exit interface{ ExitCode() int }
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("ip -batch: %v: %s", err, out)
	}
}

// step does one thing.
func (c *churn) step(t *testing.T) {
	t.Helper()
	n := c.steps
	c.steps++
	switch n % 8 {
	case 0:
		c.try(t, strings.ReplaceAll(batch(200), " via", " proto 99 via")+"-6 route add fd31:0:0:1::/64 via fd77::66 proto 99")
	case 1:
		c.try(t, "addr add 172.31.7.1/24 dev eth0; addr add fd31:0:0:7::1/64 dev eth0; addr del 172.31.7.1/24 dev eth0; addr del fd31:0:0:7::1/64 dev eth0")
	case 2:
		c.try(t, fmt.Sprintf("link add c%d type veth peer name y%d; link set c%d up; link set y%d up; addr add 172.31.8.1/24 dev c%d; link del c%d", n, n, n, n, n, n))
	case 3:
		c.try(t, "rule add to 172.31.6.0/24 lookup 77; rule del to 172.31.6.0/24 lookup 77")
	case 4:
		c.nested(t, n)
	case 5:
		for _, words := range []string{"status", "status --json", "leaks --socket " + c.s.prog.Socket, "explain 172.31.1.10"} {
			if _, err := c.s.prog.Run(strings.Fields(words)...); err != nil {
				t.Fatal(err)
			}
		}
	case 6:
		c.try(t, "nexthop add id 7 via 10.88.0.1 dev tun0; route add 172.31.5.0/24 nhid 7 proto 99; nexthop replace id 7 via 10.77.0.66 dev eth0; nexthop del id 7")
	case 7:
		if c.wild {
			c.try(t, "route del 172.31.0.0/16 dev tun0; -6 route del fd31::/48 dev tun0")
		}
	}
}

// nested opens a second tunnel inside the first one's prefix, with a session on
// it, and ends both: the session by a command, or the tunnel under it.
func (c *churn) nested(t *testing.T, n int) {
	t.Helper()
	name := fmt.Sprintf("in%d", n)
	tun, err := testenv.NewTun(c.s.Client, name, testenv.Prefixes("10.99.0.2/24")...)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close() //nolint:errcheck // it is a device's end
	c.try(t, "route add 172.31.128.0/17 proto 99 dev "+name)
	if _, err := c.s.prog.Run("up", "--tunnel", name, "--protect", "172.31.128.0/17"); err != nil {
		t.Fatal(err)
	}
	c.try(t, "route add 172.31.129.0/24 via 10.77.0.66 proto 99; route add 172.31.130.0/24 dev tun0 proto 99")
	if n%16 < 8 {
		if _, err := c.s.prog.Run("down", "--tunnel", name); err != nil {
			t.Fatal(err)
		}
	}
	c.try(t, "route flush proto 99")
}

// average is the middle of some loads.
func average(loads []load) (a load) {
	for _, l := range loads {
		a.rss, a.fds, a.threads = a.rss+l.rss, a.fds+l.fds, a.threads+l.threads
	}
	n := max(1, len(loads))
	return load{a.rss / n, a.fds / n, a.threads / n}
}

// TestChurn: routes, interfaces, addresses, rules, nexthop objects, sessions and
// questions without pause. Once warm, memory, descriptors and goroutines do not
// grow. "make churn" does it for an hour.
func TestChurn(t *testing.T) {
	needs(t)
	s := newStub(t)
	s.ip(t, "route add 172.31.1.0/24 via 10.77.0.66")
	before := s.Client.MainTable(t)
	fresh := s.daemon(t)
	s.again(t)
	few := goroutines(t, fresh)
	s.prog.Must(t, "recover")

	d := s.daemon(t)
	c := &churn{s: s, wild: true}
	var early, late []load
	start := time.Now()
	for time.Since(start) < *churnFor {
		c.step(t)
		switch at := time.Since(start); {
		case !d.Running():
			t.Fatal("the daemon has ended")
		case at < *churnFor/3:
		case at < *churnFor*2/3:
			early = append(early, loadOf(t, d.Pid()))
		default:
			late = append(late, loadOf(t, d.Pid()))
		}
	}
	a, b := average(early), average(late)
	t.Logf("%d steps; in the middle %+v, at the end %+v", c.steps, a, b)
	if b.rss > a.rss+a.rss/5+(6<<10) || b.fds > a.fds+3 || b.threads > a.threads+8 {
		t.Errorf("it grows: in the middle %+v, at the end %+v", a, b)
	}
	enforcing(t, s.prog)
	s.again(t)
	if in, out := s.burst(t, site); in != burst || out != 0 {
		t.Errorf("of %d packets %d left and %d entered the tunnel", burst, out, in)
	}
	if many := goroutines(t, d); many > few+4 {
		t.Errorf("%d goroutines at the end, %d of a fresh daemon:\n%s", many, few, d.Output())
	}
	s.prog.Must(t, "recover")
	if got := s.Client.MainTable(t); sortedLines(got) != sortedLines(before) {
		t.Errorf("the table after all is\n%s\nwant\n%s", got, before)
	}
}

// goroutines ends the daemon, which says what each of them does, and counts.
func goroutines(t *testing.T, d *testenv.Process) int {
	t.Helper()
	does(t, d.Signal(syscall.SIGQUIT))
	if _, err := d.Wait(long); err != nil {
		t.Fatal(err)
	}
	return strings.Count("\n"+d.Output(), "\ngoroutine ")
}

// TestKilledAtRandom: the daemon is killed at random moments of all that, and
// started again, or recover is run. In the end the table is as it was.
func TestKilledAtRandom(t *testing.T) {
	needs(t)
	s := newStub(t)
	s.ip(t, "route add 172.31.1.0/24 via 10.77.0.66\nroute add 172.31.0.0/20 via 10.77.0.66 metric 7\n-6 route add fd31:0:0:2::/64 via fd77::66")
	before := s.Client.MainTable(t)
	c := &churn{s: s}
	for round := range 6 {
		d := s.daemon(t)
		after := time.Duration(rand.Int64N(int64(1200 * time.Millisecond)))
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			time.Sleep(after) // a random moment is what is tried
			d.Kill()
		}()
		for d.Running() {
			c.step(t)
		}
		<-killed
		if round%2 == 1 {
			s.prog.Must(t, "recover")
			c.try(t, "route flush proto 99; -6 route flush proto 99")
			if got := s.Client.MainTable(t); sortedLines(got) != sortedLines(before) {
				t.Errorf("round %d, killed after %v and recovered: the table is\n%s\nwant\n%s", round, after, got, before)
			}
		}
	}
	t.Logf("%d steps", c.steps)
	d := s.daemon(t)
	s.again(t)
	stopped(t, d)
	c.try(t, "route flush proto 99; -6 route flush proto 99")
	if got := s.Client.MainTable(t); sortedLines(got) != sortedLines(before) {
		t.Errorf("the table after all is\n%s\nwant\n%s", got, before)
	}
}
