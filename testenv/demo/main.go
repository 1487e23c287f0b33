//go:build linux

// Demo tells culvert's main job as a story, for real: an OpenVPN client, a
// rogue DHCP server on its LAN, packets counted on both sides, first without
// culvert and then with it. It runs in network namespaces of its own; the
// host's routing is not touched. "make demo" builds what it needs and runs it.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

const packets = 200

func main() {
	start := time.Now()
	fmt.Print(intro)
	for _, act := range []func(testenv.TB){without, with, crash, proof} {
		var log bytes.Buffer
		if err := testenv.Script("demo", &log, act); err != nil {
			fmt.Fprintf(os.Stderr, "\nthe demo failed: %v\n%s", err, log.String())
			if errors.Is(err, testenv.ErrSkipped) {
				fmt.Fprintln(os.Stderr, "run it as root, by \"make demo\"")
			}
			os.Exit(1)
		}
	}
	fmt.Printf("\nThat was real OpenVPN, a real DHCP client and server, and this kernel, in %.0f s.\n"+
		"Try it on your own VPN:  culvert plan --tunnel tun0 --protect 10.0.0.0/8   (changes nothing)\n", time.Since(start).Seconds())
}

const intro = `culvert: what a café's network can do to a VPN, and what it can not do any more

   laptop ──── café LAN ──── router ──── VPN server ──── office 172.31.0.0/16
                  │                                        └ wiki 172.31.1.10
               attacker, who runs the LAN's DHCP server
               and answers as 172.31.1.10 too

The VPN's administrator routes 172.31.0.0/16 into the tunnel. Packets are counted
where they arrive: at the real wiki, and at the attacker.
`

func act(title string)               { fmt.Printf("\n%s\n%s\n", title, strings.Repeat("─", len([]rune(title)))) }
func say(format string, args ...any) { fmt.Printf("  "+format+"\n", args...) }
func show(text string)               { fmt.Print(indent(text)) }
func indent(text string) (out string) {
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		out += "    │ " + strings.TrimRight(line, " ") + "\n"
	}
	return out
}

// traffic sends packets to the wiki and tells who got them.
func traffic(t testenv.TB, lab *testenv.Lab) (wiki, attacker uint64) {
	to := testenv.To(testenv.TargetAddr.String() + "/32")
	to.Proto, to.Direction = 17, testenv.In
	arrived, stolen := lab.Arrived(t, to), lab.Stolen(t, to)
	lab.Client.Send(t, testenv.Blast{Dst: netip.AddrPortFrom(testenv.TargetAddr, 9000), Count: packets, Rate: 2000})
	arrived.Wait(packets, time.Second)
	stolen.Settle(200 * time.Millisecond)
	return arrived.Packets(), stolen.Packets()
}

func tell(t testenv.TB, lab *testenv.Lab) {
	wiki, attacker := traffic(t, lab)
	say("%d packets to 172.31.1.10:  wiki %d, attacker %d", packets, wiki, attacker)
}

// lease lets the attacker answer the laptop's DHCP client.
func lease(t testenv.TB, lab *testenv.Lab) {
	lab.DHCP(t, testenv.TunnelVision())
	testenv.DHCPClient{NS: lab.Client, Device: "eth0"}.Start(t)
	testenv.Eventually(t, 20*time.Second, "a DHCP lease", func() bool { return len(lab.Client.Addrs("eth0")) > 3 })
}

func routes(t testenv.TB, lab *testenv.Lab) string {
	return lab.Client.IP(t, "-4", "route", "show")
}

func without(t testenv.TB) {
	act("1. Without culvert")
	lab := testenv.NewLab(t, testenv.LabOptions{})
	lab.Connect(t)
	say("OpenVPN is up.")
	tell(t, lab)
	say("The laptop takes a DHCP lease. The attacker's answer carries option 121: a route")
	say("for 172.31.1.0/24 by way of himself. It is longer than the VPN's, so it wins:")
	lab.DHCP(t, testenv.TunnelVision())
	testenv.DHCPClient{NS: lab.Client, Device: "eth0"}.Start(t)
	testenv.Eventually(t, 20*time.Second, "the attacker's route", func() bool { return lab.Client.DeviceTo(testenv.TargetAddr) == "eth0" })
	show(routes(t, lab))
	tell(t, lab)
	say("The VPN still says \"connected\". This is TunnelVision, CVE-2024-3661.")
}

// hooks are the four lines in OpenVPN's configuration that join it to culvert.
func hooks(p *testenv.Program) map[string]string {
	out := map[string]string{}
	for _, name := range []string{"up", "route-up", "route-pre-down", "down"} {
		out[name] = p.Bin + " hook openvpn --socket " + p.Socket
	}
	return out
}

func connect(t testenv.TB, lab *testenv.Lab, p *testenv.Program) *testenv.VPN {
	c := lab.VPNClient()
	c.Hooks = hooks(p)
	v := c.Start(t)
	v.WaitUp(t, 1)
	p.Must(t, "status", "--wait", "10s")
	return v
}

func with(t testenv.TB) {
	act("2. With culvert")
	lab := testenv.NewLab(t, testenv.LabOptions{})
	lab.Client.IP(t, "route", "add", "172.31.200.0/24", "via", testenv.RouterAddr.String())
	before := lab.Client.MainTable(t)
	p := testenv.NewProgram(t, lab.Client, os.Getenv("CULVERT_BIN"))
	daemon := p.Daemon(t)
	say("culvert run is started. A route of the laptop's own, 172.31.200.0/24 by the LAN,")
	say("stands already. OpenVPN connects, and its up script is \"culvert hook openvpn\":")
	vpn := connect(t, lab, p)
	show(p.Must(t, "status"))
	tell(t, lab)
	say("The same attack: a DHCP lease with option 121.")
	lease(t, lab)
	waitRemoved(t, p)
	tell(t, lab)
	say("What happened, as \"culvert status\" tells it:")
	show(lastIncident(t, p))
	say("Now somebody deletes the VPN's route itself:")
	lab.Client.IP(t, "route", "del", testenv.SiteNet.String())
	testenv.Eventually(t, 5*time.Second, "the VPN's route", func() bool { return lab.Client.DeviceTo(testenv.TargetAddr) == "tun0" })
	show(lastIncident(t, p))
	tell(t, lab)
	say("OpenVPN disconnects: the laptop's own route comes back.")
	vpn.Stop(t)
	testenv.Eventually(t, 5*time.Second, "the held route", func() bool {
		return strings.Contains(routes(t, lab), "172.31.200.0/24")
	})
	daemon.Stop(t)
	verdict(t, before, withoutLease(lab.Client.MainTable(t)))
}

// withoutLease leaves out what the DHCP client added for itself: it is the
// laptop's own business, and stays.
func withoutLease(table string) string {
	var out []string
	for _, line := range strings.SplitAfter(table, "\n") {
		if !strings.Contains(line, "src 10.77.0.1") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

func verdict(t testenv.TB, before, after string) {
	if before != after {
		t.Fatalf("the table differs. Before:\n%s\nafter:\n%s", before, after)
	}
	say("The main table, compared line by line with before: identical.")
}

// status is the part of "culvert status --json" that the story tells of.
type status struct {
	Incidents []struct {
		What, Route, Reason string
		By                  struct{ Protocol, Process string }
		Exposed             int `json:"exposed_us"`
	}
}

func read(t testenv.TB, p *testenv.Program) (st status) {
	if err := json.Unmarshal([]byte(p.Exec(t, "status", "--json").Stdout), &st); err != nil {
		t.Fatalf("status: %v", err)
	}
	return st
}

func waitRemoved(t testenv.TB, p *testenv.Program) {
	testenv.Eventually(t, 10*time.Second, "the attacker's route is removed", func() bool {
		for _, in := range read(t, p).Incidents {
			if in.What == "removed" && strings.HasPrefix(in.Route, testenv.AttackNet.String()) {
				return true
			}
		}
		return false
	})
}

func lastIncident(t testenv.TB, p *testenv.Program) string {
	list := read(t, p).Incidents
	in := list[len(list)-1]
	by := "protocol " + in.By.Protocol
	if in.By.Process != "" {
		by = in.By.Process + " (" + by + ")"
	}
	return fmt.Sprintf("%s %s\nwhy      %s\ndone by  %s\nstood    %d µs from its announcement", in.What, in.Route, in.Reason, by, in.Exposed)
}

func crash(t testenv.TB) {
	act("3. Killed in the middle")
	lab := testenv.NewLab(t, testenv.LabOptions{Push: []string{"redirect-gateway def1 ipv6"}})
	before := lab.Client.MainTable(t)
	p := testenv.NewProgram(t, lab.Client, os.Getenv("CULVERT_BIN"))
	daemon := p.Daemon(t)
	say("A full tunnel this time: all traffic belongs to the VPN, the LAN's own route goes.")
	vpn := connect(t, lab, p)
	show(p.Must(t, "status"))
	say("kill -9 of culvert, then of OpenVPN: nobody is left to tidy up.")
	daemon.Kill()
	vpn.Kill()
	testenv.Eventually(t, 5*time.Second, "the tunnel is gone", func() bool { return !lab.Client.HasLink("tun0") })
	show(routes(t, lab))
	say("\"culvert recover\" reads the journal, which was written before each delete:")
	show(p.Must(t, "recover"))
	verdict(t, before, withoutServer(lab.Client.MainTable(t)))
}

// withoutServer leaves out the host route to its server that a killed OpenVPN
// leaves behind with no help of ours.
func withoutServer(table string) string {
	var out []string
	for _, line := range strings.SplitAfter(table, "\n") {
		if !strings.Contains(line, testenv.ServerAddr.String()+" ") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// proof tells what really left outside the tunnel, counted by eBPF on the laptop
// and by a capture on the LAN, which must agree.
func proof(t testenv.TB) {
	act("4. The proof")
	lab := testenv.NewLab(t, testenv.LabOptions{})
	lab.Connect(t)
	p := testenv.NewProgram(t, lab.Client, os.Getenv("CULVERT_BIN"))
	say("For a second a program sends %d packets to 172.31.1.10, while somebody adds the", volley)
	say("attacker's route again and again. Another program needs no route: \"ping -I eth0\"")
	say("binds its socket to the interface, which any user may do. Captured on the LAN:")
	fmt.Println()
	say("without culvert          %4d packets", volleyed(t, lab))
	lab.Client.IP(t, "route del "+testenv.AttackNet.String())
	flags := []string{"--tunnel", "tun0", "--protect", testenv.SiteNet.String(), "--server", testenv.ServerAddr.String() + ":1194/udp"}
	var tables string
	for _, onLeak := range []string{"count", "drop"} {
		d := p.Daemon(t, append(flags, "--on-leak", onLeak)...)
		p.Must(t, "status", "--wait", "10s")
		captured := volleyed(t, lab)
		said := leaked(t, p)
		say("culvert, --on-leak %-5s %4d packets; it says %d tried to leave, %d were dropped", onLeak, captured, said.Packets, said.Dropped)
		if captured != said.Packets-said.Dropped {
			t.Fatalf("the two disagree")
		}
		if onLeak == "count" {
			tables = p.Exec(t, "leaks", "--socket", p.Socket).Stdout
		}
		d.Stop(t)
	}
	fmt.Println()
	say("Who sent them, and why they got past the tunnel (\"culvert leaks\", --on-leak count):")
	show(shorter(tables))
}

// volley is how many packets a program sends while it is attacked.
const volley = 2000

// volleyed sends and attacks for a second, and returns what was captured on the
// LAN.
func volleyed(t testenv.TB, lab *testenv.Lab) uint64 {
	captured := lab.Leaks(t, testenv.To(testenv.TargetAddr.String()))
	_ = lab.Client.Command("ping", "-q", "-c", "10", "-i", "0.02", "-W", "1", "-I", "eth0", testenv.TargetAddr.String()).Run()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		attack(lab, stop)
	}()
	lab.Client.Send(t, testenv.Blast{Dst: netip.AddrPortFrom(testenv.TargetAddr, 9000), Count: volley, Rate: volley})
	close(stop)
	<-done
	captured.Settle(300 * time.Millisecond)
	got, err := captured.Stop()
	if err != nil || got.Lost > 0 {
		t.Fatalf("the capture: %v, %v", got, err)
	}
	return got.Packets
}

// attack adds the attacker's route until it is told to stop.
func attack(lab *testenv.Lab, stop <-chan struct{}) {
	route := []string{"route", "replace", testenv.AttackNet.String(), "via", testenv.AttackerAddr.String(), "proto", "dhcp"}
	for {
		select {
		case <-stop:
			return
		default:
			_ = lab.Client.Command("ip", route...).Run()
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// leaked is what culvert has counted.
func leaked(t testenv.TB, p *testenv.Program) (sum struct{ Packets, Dropped uint64 }) {
	var doc struct {
		Leaks struct{ Packets, Dropped uint64 }
	}
	if err := json.Unmarshal([]byte(p.Exec(t, "leaks", "--json", "--socket", p.Socket).Stdout), &doc); err != nil {
		t.Fatalf("leaks: %v", err)
	}
	return doc.Leaks
}

// shorter keeps the head of a table, its end, and the head of each line.
func shorter(table string) string {
	const rows, width = 5, 150
	lines := strings.Split(strings.TrimRight(table, "\n"), "\n")
	if n := len(lines) - 2; n > rows {
		lines = append(lines[:1+rows:1+rows], fmt.Sprintf("… %d more rows, one for each incident", n-rows), lines[len(lines)-1])
	}
	for i, line := range lines {
		if r := []rune(line); len(r) > width {
			lines[i] = string(r[:width]) + "…"
		}
	}
	return strings.Join(lines, "\n")
}
