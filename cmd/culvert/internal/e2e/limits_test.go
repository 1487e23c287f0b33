//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// long is how long it may take until all is right again after the program was
// kept from working.
const long = 60 * time.Second

// limited starts the daemon behind a shell's words, which exec it.
func (s *stub) limited(t *testing.T, first string, args ...string) *testenv.Process {
	t.Helper()
	words := append([]string{first, "exec", s.prog.Bin}, s.prog.Args(append([]string{"run"}, args...)...)...)
	d := testenv.Start(t, s.Client.Command("sh", "-c", strings.Join(words, " ")))
	testenv.Eventually(t, long, "the daemon", func() bool { return s.prog.Answers() || !d.Running() })
	return d
}

// notified is a socket that hears what the daemon tells systemd.
func notified(t *testing.T) (path string, said func() string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return path, func() string { // what has come since the last call
		var all strings.Builder
		b := make([]byte, 4096)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		for {
			n, err := conn.Read(b)
			if err != nil {
				return all.String()
			}
			all.Write(b[:n])
			all.WriteByte('\n')
		}
	}
}

// TestStopped: the daemon is stopped by SIGSTOP while the table is attacked,
// the tunnel's route deleted, an address renewed and another tunnel opened and
// closed. When it goes on all is right again, nothing is lost, and the watchdog
// is fed.
func TestStopped(t *testing.T) {
	needs(t)
	s := newStub(t)
	s.ip(t, "route add 172.31.1.0/24 via 10.77.0.66")
	before := s.Client.MainTable(t)
	path, said := notified(t)
	d := s.limited(t, "NOTIFY_SOCKET="+path+" WATCHDOG_USEC=3000000", "--tunnel", "tun0", "--protect", sites)
	enforcing(t, s.prog)
	testenv.Eventually(t, patience, "the watchdog fed", func() bool { return strings.Contains(said(), "WATCHDOG=1") })
	does(t, d.Signal(syscall.SIGSTOP))
	s.runBatch(t, strings.ReplaceAll(batch(30_000), " via", " proto dhcp via"))
	s.ip(t, "route del 172.31.0.0/16 dev tun0\n-6 route add fd31:0:0:1::/64 via fd77::66\nrule add to 172.31.7.0/24 lookup 77\nrule del to 172.31.7.0/24 lookup 77")
	testenv.Veth(t, testenv.End{NS: s.Client, Name: "eth1", Addrs: testenv.Prefixes("172.31.8.1/24")}, testenv.End{NS: s.LAN, Name: "eth8"})
	time.Sleep(10 * time.Second) // it is the time that is tried
	said()
	s.Client.LinkDel(t, "eth1")
	does(t, d.Signal(syscall.SIGCONT))
	if !testenv.Until(long, func() bool {
		table := s.Client.MainTable(t)
		return !strings.Contains(table, "10.77.0.66") && !strings.Contains(table, "fd77::66") && strings.Contains(table, "172.31.0.0/16 dev tun0")
	}) {
		t.Errorf("not right after ten seconds' stop; %d lines", strings.Count(s.Client.MainTable(t), "\n"))
	}
	enforcing(t, s.prog)
	testenv.Eventually(t, patience, "the watchdog fed again", func() bool { return strings.Contains(said(), "WATCHDOG=1") })
	s.again(t)
	if in, out := s.burst(t, site); in != burst || out != 0 {
		t.Errorf("of %d packets %d left and %d entered the tunnel", burst, out, in)
	}
	stopped(t, d)
	if !testenv.Until(patience, func() bool { return sortedLines(s.Client.MainTable(t)) == sortedLines(before) }) {
		t.Errorf("the table after the end is\n%s\nwant\n%s", s.Client.MainTable(t), before)
	}
}

// TestFewDescriptors: with no descriptor left the daemon keeps what it has, says
// what it cannot do, and does it when there are some again. The limit is lowered
// and raised while it runs, as a leak elsewhere in it would.
func TestFewDescriptors(t *testing.T) {
	needs(t)
	s := newStub(t)
	s.ip(t, "route add 172.31.1.0/24 via 10.77.0.66")
	before := s.Client.MainTable(t)
	d := s.daemon(t)
	var was unix.Rlimit
	does(t, unix.Prlimit(d.Pid(), unix.RLIMIT_NOFILE, nil, &was))
	does(t, unix.Prlimit(d.Pid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}, nil))
	s.ip(t, "route add 172.31.2.0/24 via 10.77.0.66\nroute del 172.31.0.0/16 dev tun0")
	s.Client.AddAddr(t, "eth0", testenv.Prefixes("172.31.7.1/24")...)
	testenv.Veth(t, testenv.End{NS: s.Client, Name: "eth1"}, testenv.End{NS: s.LAN, Name: "eth8"})
	// The edge needs no new descriptor.
	if !eventually(func() bool {
		table := s.Client.MainTable(t)
		return !strings.Contains(table, "172.31.2.0/24") && strings.Contains(table, "172.31.0.0/16 dev tun0")
	}) {
		t.Errorf("with no descriptor left:\n%s", s.Client.MainTable(t))
	}
	d.WaitOutput(t, "too many open files", 1, patience)
	does(t, unix.Prlimit(d.Pid(), unix.RLIMIT_NOFILE, &was, nil))
	if !testenv.Until(long, func() bool { return !strings.Contains(s.Client.MainTable(t), "172.31.7.0/24") }) {
		t.Errorf("with descriptors again:\n%s", s.Client.MainTable(t))
	}
	enforcing(t, s.prog)
	s.again(t)
	s.ip(t, "addr del 172.31.7.1/24 dev eth0")
	s.Client.LinkDel(t, "eth1")
	d.Kill()
	s.prog.Must(t, "recover")
	sameTable(t, s.Client, "after a kill and recover", before)
}

// TestTooFewDescriptors: under a limit that is too small from the start the
// daemon either serves or says why it does not, and changes nothing then.
func TestTooFewDescriptors(t *testing.T) {
	for _, n := range []int{8, 12, 16, 24, 32, 48} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			needs(t)
			s := newStub(t)
			s.ip(t, "route add 172.31.1.0/24 via 10.77.0.66")
			before := s.Client.MainTable(t)
			d := s.limited(t, "ulimit -n "+strconv.Itoa(n)+";", "--tunnel", "tun0", "--protect", sites)
			if d.Running() {
				s.prog.Exec(t, "status")
				testenv.Until(patience, func() bool { return strings.Contains(d.Output(), "msg=ready") })
				d.Kill()
				s.prog.Must(t, "recover")
			} else if out := d.Output(); !strings.Contains(out, "too many open files") || strings.Contains(out, "goroutine ") {
				t.Errorf("it ended with\n%s", out)
			}
			sameTable(t, s.Client, "after all", before)
		})
	}
}

// memoryCgroup makes a cgroup with a limit of memory for whoever joins it.
func memoryCgroup(t *testing.T, limit int) (procs string) {
	t.Helper()
	for _, v := range []struct{ dir, file string }{{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"}} {
		dir := filepath.Join(v.dir, fmt.Sprintf("culvert-%d-%s", os.Getpid(), filepath.Base(t.TempDir())))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { testenv.Until(patience, func() bool { return os.Remove(dir) == nil }) })
		if os.WriteFile(filepath.Join(dir, v.file), []byte(strconv.Itoa(limit)), 0o644) == nil {
			return filepath.Join(dir, "cgroup.procs")
		}
	}
	testenv.Lacking(t, "no cgroup with a limit of memory can be made")
	return ""
}

// TestLittleMemory: 100,000 conflicting routes that came, and 10,000 that stood
// and must come back, in 64 MiB. The daemon holds, and nothing is lost.
func TestLittleMemory(t *testing.T) {
	needs(t)
	s := newStub(t)
	s.runBatch(t, strings.ReplaceAll(batch(10_000), "172.31.", "172.30."))
	s.ip(t, "route add 172.30.0.0/16 dev tun0")
	before := s.Client.MainTable(t)
	procs := memoryCgroup(t, 64<<20)
	d := s.limited(t, "echo $$ >"+procs+";", "--tunnel", "tun0", "--protect", sites+",172.30.0.0/16")
	enforcing(t, s.prog)
	var b strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&b, "route add 172.31.%d.%d/32 via 10.77.0.66 metric %d\n", i>>8&255, i&255, 1+i>>16)
	}
	s.runBatch(t, b.String())
	if !testenv.Until(long, func() bool { return strings.Count(s.Client.MainTable(t), "10.77.0.66") == 0 || !d.Running() }) || !d.Running() {
		t.Fatalf("running %t; %d conflicts are left", d.Running(), strings.Count(s.Client.MainTable(t), "10.77.0.66"))
	}
	s.again(t)
	if kib := peak(t, d.Pid()); kib > 64<<10 { // pages of files, which are not its own, included
		t.Errorf("memory rose to %d KiB", kib)
	}
	d.Kill()
	s.prog.Must(t, "recover")
	sameTable(t, s.Client, "after a kill and recover", before)
}

// TestReadOnlyStateFolder: the file system of the state folder turns read-only
// and comes back, as after an error of a disk.
func TestReadOnlyStateFolder(t *testing.T) {
	needs(t, "unshare", "nsenter")
	s := newStub(t)
	s.ip(t, "route add 172.31.1.0/24 via 10.77.0.66")
	before := s.Client.MainTable(t)
	d, dir := s.smallDisk(t)
	s.prog.Must(t, "up", "--tunnel", "tun0", "--protect", sites)
	// A new file system over it is all that a path shows: what is open stays.
	inside := func(words string) {
		t.Helper()
		if out, err := s.Client.Command("nsenter", "--mount=/proc/"+strconv.Itoa(d.Pid())+"/ns/mnt", "sh", "-c", words).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", words, err, out)
		}
	}
	inside("mount -t tmpfs -o ro,mode=700 none " + s.prog.StateDir)
	s.folderLost(t)
	if r := s.prog.Exec(t, "status"); !strings.Contains(r.Stdout+r.Stderr, "read-only") {
		t.Errorf("status does not say why: %s", r)
	}
	inside("umount " + s.prog.StateDir)
	enforcing(t, s.prog)
	s.again(t)
	if journalOf(t, dir) == "" {
		t.Error("there is no journal")
	}
	stopped(t, d)
	sameTable(t, s.Client, "after the end", before)
}

// TestFairness: two sessions, one fought over without pause. The other's
// conflicts are removed promptly, also those that only a look at the whole table
// finds, and questions are answered.
func TestFairness(t *testing.T) {
	needs(t)
	s := newStub(t)
	testenv.OpenTun(t, s.Client, "tun1", testenv.Prefixes("10.99.0.2/24")...)
	s.ip(t, "route add 172.29.0.0/16 dev tun1")
	before := s.Client.MainTable(t)
	d := s.daemon(t)
	s.prog.Must(t, "up", "--tunnel", "tun1", "--protect", "172.29.0.0/16")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := s.Client.CommandContext(ctx, "ip", "-force", "-batch", "-")
	in, out := io.Pipe()
	cmd.Stdin, cmd.Stderr = in, io.Discard
	does(t, cmd.Start())
	fighting := make(chan struct{})
	go func() {
		defer close(fighting)
		lines := strings.Repeat("route add 172.31.1.0/24 via 10.77.0.66\nroute add 172.31.2.0/24 via 10.77.0.66 metric 7\n", 100)
		for ctx.Err() == nil {
			if _, err := io.WriteString(out, lines); err != nil {
				return
			}
		}
	}()
	fib, err := s.Client.OpenFIB()
	if err != nil {
		t.Fatal(err)
	}
	defer fib.Close() //nolint:errcheck // only asked
	dst := netip.MustParseAddr("172.29.1.1")
	by := func(want string) {
		t.Helper()
		if !eventually(func() bool { hop, err := fib.Lookup(dst, 0); return err == nil && hop.Device == want }) {
			hop, err := fib.Lookup(dst, 0)
			t.Errorf("beside a fight %s leaves by %s, %v", dst, hop.Device, err)
		}
	}
	for range 8 {
		s.Client.IP(t, "route add 172.29.1.0/24 via 10.77.0.66")
		by("tun1")
		// The kernel drops the tunnel's route without a word: only a look at the
		// whole table finds that.
		s.Client.LinkDown(t, "tun1")
		s.Client.LinkUp(t, "tun1")
		by("tun1")
	}
	st := statusOf(t, s.prog)
	cancel()
	_ = out.Close()
	_ = in.Close()
	_ = cmd.Wait()
	<-fighting
	for _, sess := range st.Sessions {
		t.Logf("%s: %s, %d removed", sess.Tunnel, sess.State, sess.Removed)
		if sess.Tunnel == "tun0" && sess.Removed < 1000 {
			t.Errorf("control: it was no fight")
		}
	}
	enforcing(t, s.prog)
	stopped(t, d)
	sameTable(t, s.Client, "after the end", before)
}

// sortedLines is a table without its order.
func sortedLines(table string) string {
	lines := strings.Split(table, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
