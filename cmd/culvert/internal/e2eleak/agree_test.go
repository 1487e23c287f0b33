//go:build linux

package e2eleak

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

var (
	agreeSeed   = flag.Uint64("agree-seed", 0, "run this world alone")
	agreeWorlds = flag.Int("agree-worlds", 6, "how many random worlds TestAgree makes")
)

// opinion is a random world: a policy, a table, rules, and what is asked of it.
type opinion struct {
	*stub
	rnd      *rand.Rand
	flags    []string // that describe the session
	daemon   *testenv.Process
	expected int // packets that leaked so far
}

// TestAgree: status, explain, plan and leaks never contradict each other, nor the
// kernel, nor what is captured: random policies, tables and rules, and random packets
// by every mechanism that explain can be asked about. Each failure names the seed of
// its world.
func TestAgree(t *testing.T) {
	seeds := []uint64{*agreeSeed}
	if *agreeSeed == 0 {
		seeds = nil
		for range *agreeWorlds {
			seeds = append(seeds, uint64(time.Now().UnixNano()))
		}
	}
	for i, seed := range seeds {
		t.Run(fmt.Sprintf("world %d", i), func(t *testing.T) {
			needs(t)
			t.Logf("-agree-seed %d", seed)
			o := newOpinion(t, seed)
			o.stands(t)
			for range 14 {
				o.ask(t)
			}
			if got := o.table(t); got.Packets != o.expected {
				t.Errorf("leaks has %d packets in all, captured were %d", got.Packets, o.expected)
			}
			o.stands(t)
			stopped(t, o.daemon)
		})
	}
}

func newOpinion(t *testing.T, seed uint64) *opinion {
	t.Helper()
	o := &opinion{stub: newStub(t), rnd: rand.New(rand.NewPCG(seed, 0))}
	protect := []string{"172.31.0.0/16", "fd31::/48"}
	switch o.rnd.IntN(3) {
	case 0:
		protect = []string{"0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"}
	case 1:
		protect = append(protect, "10.5.0.0/16", "2001:db8:5::/48")
	}
	port := 5000 // what the senders use: the transport
	if o.chance(2) {
		port = 7000
	}
	o.flags = []string{"--tunnel", "tun0", "--protect", strings.Join(protect, ","),
		"--server", fmt.Sprintf("10.77.0.66:%d/udp,[fd77::66]:%d/udp", port, port)}
	if o.chance(2) {
		o.flags = append(o.flags, "--exclude", "172.31.7.0/24,fd31:0:0:7::/64")
	}
	for _, dst := range []string{"172.31.1.0/24", "172.31.7.0/24", "10.5.3.0/24"} {
		if o.chance(2) {
			o.Client.IP(t, "route add "+dst+" via 10.77.0.66")
		}
	}
	o.Client.IP(t, "route add default via 10.77.0.1 dev eth0 onlink table 100")
	o.Client.IP(t, "-6 route add default via fd77::1 dev eth0 onlink table 100")
	o.daemon = o.prog.Daemon(t, o.flags...)
	o.enforcing(t)
	for _, family := range []string{"-4", "-6"} {
		for i, selector := range []string{"fwmark 0x2a", "uidrange 65534-65534", "ipproto udp dport 5000 fwmark 0x2b"} {
			if o.chance(2) {
				o.Client.IP(t, fmt.Sprintf("%s rule add pref %d %s lookup 100", family, 100+i, selector))
			}
		}
	}
	o.neighbours(t)
	return o
}

// neighbours answers for the routers: with the network's own route out, nobody asks
// for them with every address.
func (o *opinion) neighbours(t *testing.T) {
	for _, a := range []string{"10.77.0.1", "10.77.0.66", "fd77::1", "fd77::66"} {
		o.Client.IP(t, "neigh replace "+a+" lladdr "+mac(t, o.LAN, "eth0")+" dev eth0 nud permanent")
	}
}

func (o *opinion) chance(n int) bool { return o.rnd.IntN(n) == 0 }

// stands checks what status and plan say: enforcing, and nothing would change.
func (o *opinion) stands(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, patience, "enforcing", func() bool {
		st := o.status(t)
		return len(st.Sessions) == 1 && st.Sessions[0].State == "enforcing" && st.Sessions[0].Error == ""
	})
	out := o.prog.Must(t, append([]string{"plan", "--socket", o.prog.Socket}, o.flags...)...)
	if !strings.HasPrefix(out, "nothing would change") {
		t.Errorf("status says enforcing, but plan says\n%s", out)
	}
}

// asked is one packet, as a talker, explain and the kernel are given it.
type asked struct{ speech }

func (o *opinion) packet() asked {
	pools := []string{"172.31.1.%d", "172.31.7.%d", "172.31.200.%d", "10.5.3.%d", "198.51.100.%d",
		"fd31:0:0:1::%x", "fd31:0:0:7::%x", "2001:db8:5::%x", "2001:db8:99::%x"}
	if o.chance(3) { // the servers and the gateways
		pools = []string{"10.77.0.66", "10.77.0.1", "fd77::66", "fd77::1"}
	}
	dst := pools[o.rnd.IntN(len(pools))]
	if strings.Contains(dst, "%") {
		dst = fmt.Sprintf(dst, 1+o.rnd.IntN(250))
	}
	a := asked{speech: speech{dst: dst, count: 5, pause: time.Millisecond}}
	switch o.rnd.IntN(5) {
	case 0:
		a.mark = 42
	case 1:
		a.mark = 43
	case 2:
		a.device = "eth0"
	case 3:
		a.uid = 65534
	}
	return a
}

// ask lets everybody say what becomes of one packet, and sends it.
func (o *opinion) ask(t *testing.T) {
	t.Helper()
	a := o.packet()
	what := fmt.Sprintf("%s, mark %d, device %q, user %d", a.dst, a.mark, a.device, a.uid)
	r := o.prog.Exec(t, "explain", a.dst, "--socket", o.prog.Socket, "--proto", "udp", "--port", fmt.Sprint(port),
		"--mark", fmt.Sprint(a.mark), "--uid", fmt.Sprint(a.uid), "--device", a.device)
	if r.Code != 0 && r.Code != 1 {
		t.Errorf("%s: explain: %s", what, r)
		return
	}
	device := o.kernel(t, a)
	out, in := o.Leaks(t, filter(a.dst)), o.Tun.Count(filter(a.dst))
	a.say(t, o.client)
	testenv.Until(patience, func() bool { return out.Packets()+in.Packets() >= 5 })
	left, entered := int(exact(t, out).Packets), int(exact(t, in).Packets)
	if r.Code == 1 {
		o.expected += left
	}
	counted := o.settled(t, o.expected).Packets
	fail := func(text string) {
		t.Errorf("%s: %s\nkernel: %s; of 5 packets %d left, %d entered the tunnel; %d of %d counted\n%s%s",
			what, text, device, left, entered, counted, o.expected, r, o.prog.Must(t, append([]string{"plan", "--socket", o.prog.Socket}, o.flags...)...))
		o.expected = counted
	}
	_, verdict, _ := strings.Cut(r.Stdout, "verdict  ")
	verdict, _, _ = strings.Cut(verdict, "\n")
	t.Logf("%s: %s; %d left, %d entered, %d counted", what, verdict, left, entered, counted)
	switch {
	case counted != o.expected:
		fail("leaks and the capture contradict each other, or explain")
	case strings.Contains(r.Stdout, "leaves through tun0") != (entered == 5 && r.Code == 0 && strings.Contains(r.Stdout, "must leave through")):
		fail("explain says where it goes, and it does not")
	case strings.Contains(r.Stdout, "wrong: it leaves by eth0") && left != 5:
		fail("explain calls it a leak, and it does not leave")
	case device == "eth0" && left != 5, device == "tun0" && entered != 5:
		fail("the packet does not go where the kernel says")
	case left+entered != 5 && !strings.Contains(r.Stdout, "no way"):
		fail("packets are lost")
	}
}

// kernel asks by iproute2.
func (o *opinion) kernel(t *testing.T, a asked) string {
	t.Helper()
	args := []string{"route", "get", a.dst, "uid", fmt.Sprint(a.uid), "ipproto", "udp", "dport", fmt.Sprint(port)}
	if a.mark != 0 {
		args = append(args, "mark", fmt.Sprint(a.mark))
	}
	if a.device != "" {
		args = append(args, "oif", a.device)
	}
	out, _ := o.Client.Command("ip", args...).CombinedOutput() // a refusal is an answer
	words := strings.Fields(string(out))
	for i, w := range words {
		if w == "dev" && i+1 < len(words) {
			return words[i+1]
		}
	}
	return strings.TrimSpace(string(out))
}
