//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// hostileBase is an OpenVPN environment with nothing wrong in it.
var hostileBase = []string{
	"script_type=route-up", "dev=tun0", "ifconfig_local=10.88.0.2", "ifconfig_netmask=255.255.255.0",
	"route_vpn_gateway=10.88.0.1", "route_net_gateway=10.77.0.1", "trusted_ip=10.77.0.1", "trusted_port=1194",
	"proto_1=udp", "remote_1=10.77.0.1", "remote_port_1=1194",
	"route_network_1=172.31.0.0", "route_netmask_1=255.255.0.0", "route_gateway_1=10.88.0.1",
}

// numberedRoutes is n routes into the tunnel, from the second on.
func numberedRoutes(n int) (env []string) {
	for i := 2; i < n+2; i++ {
		env = append(env, fmt.Sprintf("route_network_%d=10.%d.%d.0", i, i>>8, i&255),
			fmt.Sprintf("route_netmask_%d=255.255.255.0", i), fmt.Sprintf("route_gateway_%d=10.88.0.1", i))
	}
	return env
}

// hook runs "culvert hook openvpn" with an environment as it is and nothing else.
func (s *stub) hook(t *testing.T, env []string, args ...string) testenv.Result {
	t.Helper()
	words := append([]string{s.prog.Bin}, s.prog.Args(append([]string{"hook", "openvpn"}, args...)...)...)
	var files [2]*os.File // standard output and error
	for i := range files {
		f, err := os.CreateTemp(t.TempDir(), "out")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close() //nolint:errcheck // read below
		files[i] = f
	}
	start := time.Now()
	var status unix.WaitStatus
	err := s.Client.Do(func() error {
		// Not by os/exec, which drops variables that are there twice.
		pid, err := syscall.ForkExec(words[0], words, &syscall.ProcAttr{Env: env, Files: []uintptr{0, files[0].Fd(), files[1].Fd()}})
		if err != nil {
			return err
		}
		_, err = unix.Wait4(pid, &status, 0, nil)
		return err
	})
	out, outErr := os.ReadFile(files[0].Name())
	said, saidErr := os.ReadFile(files[1].Name())
	if err = errors.Join(err, outErr, saidErr); err != nil {
		t.Fatalf("hook: %v", err)
	}
	t.Logf("%d variables: %v", len(env), time.Since(start))
	return testenv.Result{Code: status.ExitStatus(), Stdout: string(out), Stderr: string(said)}
}

// TestHostileOpenVPN: whatever the environment holds, the hook ends with a
// documented code, says in few words and without control characters what it
// does not understand, and what was protected stays so: no exclusion is wider
// than the routes around the tunnel say, and none has a protected prefix.
func TestHostileOpenVPN(t *testing.T) {
	around := []string{"script_type=up", "route_network_2=172.31.0.0", "route_netmask_2=255.255.0.0", "route_gateway_2=10.77.0.1"}
	inside := []string{"script_type=up", "route_network_2=172.31.9.0", "route_netmask_2=255.255.255.0", "route_gateway_2=10.77.0.1"}
	wider := []string{"script_type=up", "route_network_2=172.16.0.0", "route_netmask_2=255.240.0.0", "route_gateway_2=10.77.0.1"}
	for _, tt := range []struct {
		name  string
		env   []string // before hostileBase: the first of a name holds
		flags []string
		code  int
		open  bool   // a session comes of it
		says  string // on standard error
	}{
		{name: "control", open: true},
		{name: "an equal route around the tunnel", env: around, open: true, says: "it is protected"},
		{name: "a wider route around the tunnel", env: wider, open: true},
		{name: "a longer route around the tunnel, not believed", env: inside, flags: []string{"--no-bypass"}, open: true},
		{name: "thousands of routes", env: numberedRoutes(3000), open: true},
		{name: "more routes than are read", env: numberedRoutes(17000), says: "too many routes"},
		{name: "more routes than are read, required", env: numberedRoutes(17000), flags: []string{"--require"}, code: 1, says: "too many routes"},
		{name: "thousands of other variables", env: junk(20000), open: true},
		{name: "long values", env: []string{"route_network_2=" + strings.Repeat("9", 100<<10), "remote_2=" + strings.Repeat("a", 100<<10), "proto_2=" + strings.Repeat("\x1b", 100<<10)}, open: true, says: "is not understood"},
		{name: "escapes and newlines", env: []string{"route_network_2=\x1b]0;pwn\x07\x1b[2J\nculvert: all is well", "route_network_3=10.9.0.0\\0", "route_network_4=%00", "remote_2=\x1b[31m", "proto_2=\n"}, open: true, says: "is not understood"},
		{name: "not UTF-8", env: []string{"route_network_2=\xff\xfe\xfd", "remote_2=\xc3\x28", "proto_2=\xff"}, open: true, says: "is not understood"},
		{name: "huge and negative numbers", env: []string{"route_metric_1=-1", "route_network_99999999999999999999=10.9.0.0", "route_network_-1=10.9.0.0", "remote_port_1=-1", "trusted_port=70000", "ifconfig_ipv6_netbits=-7", "ifconfig_ipv6_local=fd88::2"}, open: true},
		{name: "a subnet that holds everything", env: []string{"ifconfig_netmask=255.0.255.0", "ifconfig_ipv6_local=fd88::2", "ifconfig_ipv6_netbits=999"}, open: true},
		{name: "a device's name that is too long", env: []string{"dev=" + strings.Repeat("t", 300)}, code: 64, says: "no interface's name"},
		{name: "a device's name for a terminal", env: []string{"dev=tun0\x1b[2J\n"}, code: 64, says: "no interface's name"},
		{name: "a device's name that leads elsewhere", env: []string{"dev=../../tun0"}, code: 64, says: "no interface's name"},
		{name: "a device that is not there", env: []string{"dev=tun1"}, says: "tun1"},
		{name: "no such script", env: []string{"script_type=\x1b[2J"}, code: 64, says: "script_type"},
		{name: "variables twice", env: []string{"dev=tun0", "dev=eth0", "route_network_1=172.31.0.0", "route_network_1=0.0.0.0"}, open: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needs(t)
			s := newStub(t)
			before := s.Client.MainTable(t)
			d := s.prog.Daemon(t)
			r := s.hook(t, slices.Concat(tt.env, hostileBase), tt.flags...)
			if r.Code != tt.code || !strings.Contains(r.Stderr, tt.says) {
				t.Errorf("want code %d and %q: %s", tt.code, tt.says, r)
			}
			if i := strings.IndexFunc(r.Stderr, func(c rune) bool { return c < ' ' && c != '\n' || c == 0x7f }); i >= 0 || len(r.Stderr) > 8<<10 {
				t.Errorf("for a terminal: %d bytes, a control character at %d: %.500q", len(r.Stderr), i, r.Stderr)
			}
			if tt.open {
				s.stillProtected(t)
			} else if n := len(statusOf(t, s.prog).Sessions); n != 0 {
				t.Errorf("%d sessions", n)
			}
			stopped(t, d)
			sameTable(t, s.Client, "after the end", before)
		})
	}
}

// stillProtected: what the control's session protects, this one does.
func (s *stub) stillProtected(t *testing.T) {
	t.Helper()
	for _, sess := range statusOf(t, s.prog).Sessions {
		if sess.Tunnel != "tun0" || !slices.Contains(sess.Protected, "172.31.0.0/16") || slices.Contains(sess.Excluded, "172.31.0.0/16") {
			t.Errorf("session on %s, protected %.10v, excluded %v", sess.Tunnel, sess.Protected, sess.Excluded)
		}
	}
	s.again(t)
	if in, out := s.burst(t, "172.31.9.1"); in != burst || out != 0 {
		t.Errorf("of %d packets %d left and %d entered the tunnel", burst, out, in)
	}
}

// junk is variables that mean nothing, some of whose names look as if they did.
func junk(n int) (env []string) {
	for i := range n {
		env = append(env, fmt.Sprintf("route_network_0%d=0.0.0.0", i), fmt.Sprintf("X509_%d_CN=\x1b[%dm", i, i))
	}
	return env
}

// TestManyPrefixes: a session with as many prefixes as a server can push keeps
// nobody waiting: another's attack is removed, questions are answered.
func TestManyPrefixes(t *testing.T) {
	needs(t)
	s := newStub(t)
	before := s.Client.MainTable(t)
	d := s.daemon(t)
	testenv.OpenTun(t, s.Client, "tun1", testenv.Prefixes("10.99.0.2/24")...)
	beside := s.Client.MainTable(t)
	env := slices.Concat([]string{"dev=tun1", "ifconfig_local=10.99.0.2", "route_network_1=10.0.0.0", "route_netmask_1=255.255.255.0"}, numberedRoutes(16000), hostileBase)
	r := s.hook(t, env, "--require")
	for range 3 {
		start := time.Now()
		s.again(t)
		t.Logf("an attack and its questions: %v", time.Since(start))
	}
	if n := len(statusOf(t, s.prog).Sessions); n != 2 {
		t.Errorf("%d sessions: %.500s", n, r)
	}
	start := time.Now()
	s.prog.Must(t, "down", "--tunnel", "tun1")
	t.Logf("down: %v", time.Since(start))
	sameTable(t, s.Client, "after down", beside)
	if kib := peak(t, d.Pid()); kib > 192<<10 {
		t.Errorf("memory rose to %d KiB", kib)
	}
	s.Client.LinkDel(t, "tun1")
	stopped(t, d)
	sameTable(t, s.Client, "after the end", before)
}
