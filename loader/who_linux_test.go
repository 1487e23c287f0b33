package loader

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// TestSeed: sockets that are older than the witness are known by the walk over open files.
func TestSeed(t *testing.T) {
	s := newStage(t, Options{})
	s.w.Close()
	udp, tcp := s.dial("10.9.0.2:7"), s.longTCP()
	s.w = s.host.open(s.w.opts)
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	counted, captured := s.measure(func() {
		udp.Write([]byte("x"))
		tcp.Write(make([]byte, 300_000))
	})
	s.equal(counted, captured, 200)
	st := s.status()
	if st.Seeded == 0 {
		testenv.Lacking(t, "no iterator here: %s", st.Senders)
	}
	s.only(Sender{Origin: Seed, PID: os.Getpid(), Comm: commOf(t)})
	t.Logf("seeded in %v", st.Seeded)
}

func (s *stage) longTCP() (c net.Conn) {
	s.t.Helper()
	s.serveTCP("10.9.0.2:80")
	s.host.try(func() (err error) {
		c, err = net.Dial("tcp", "10.9.0.2:80")
		return err
	})
	s.t.Cleanup(func() { c.Close() })
	return c
}

func commOf(t *testing.T) string {
	b, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:len(b)-1])
}

// only checks that all that leaked is put down to one process, in one way.
func (s *stage) only(want Sender) {
	s.t.Helper()
	list, err := s.w.Senders()
	if err != nil || len(list) == 0 {
		s.t.Fatalf("no senders: %v", err)
	}
	for _, got := range list {
		if got.Origin != want.Origin || got.PID != want.PID || got.Comm != want.Comm {
			s.t.Errorf("%d packets by %s %d %q, want %s %d %q",
				got.Packets, got.Origin, got.PID, got.Comm, want.Origin, want.PID, want.Comm)
		}
	}
}

// TestWithoutHooks: datagrams are then put down to the running task, and status says what is missing.
func TestWithoutHooks(t *testing.T) {
	s := newStage(t, Options{NoSenders: true})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	cmd := s.host.start("udp-connected", "10.9.0.2:7")
	cmd.Wait()
	s.only(Sender{Origin: Task, PID: cmd.Process.Pid, Comm: "udp-connected"})
	if s.status().Senders == "" {
		t.Error("status does not say that the hooks are missing")
	}
}

// TestOtherNamespaces: the hooks see the whole machine, and pass over what is not ours.
func TestOtherNamespaces(t *testing.T) {
	s := newStage(t, Options{})
	if s.host.ns.cookie == 0 {
		testenv.Lacking(t, "this kernel does not tell namespaces apart")
	}
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	var far net.PacketConn
	s.peer.try(func() (err error) { // made in another namespace, used here
		far, err = net.ListenPacket("udp4", "10.9.0.2:0")
		return err
	})
	defer far.Close()
	far.WriteTo([]byte("x"), &net.UDPAddr{IP: net.IPv4(10, 9, 0, 1), Port: 9})
	var o leakOwner
	raw, _ := far.(*net.UDPConn).SyscallConn()
	raw.Control(func(fd uintptr) {
		if err := s.w.objs.Owners.Lookup(uint32(fd), &o); err == nil {
			t.Errorf("a socket of another namespace was noted: %+v", o)
		}
	})
}

// TestSamples reads what is told of packets: all of the first ones, and no more than the rate allows.
func TestSamples(t *testing.T) {
	s := newStage(t, Options{Burst: 5})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	ctx, cancel := context.WithCancel(t.Context())
	got, done := make(chan Sample, 1000), make(chan error)
	go func() { done <- s.w.Read(ctx, func(x Sample) { got <- x }) }()
	cmd := s.host.start("bound-device", "10.77.0.1:7")
	cmd.Wait()
	x := <-got
	if x.PID != cmd.Process.Pid || x.UID != 65534 || x.Comm != "bound-device" || x.Origin != Socket ||
		x.Interface != s.dev || x.Bound != s.dev || x.Prefix != 2 || x.Reason != LeakProtected || x.Dropped ||
		x.Source.Addr() != hostAddr4 || x.Destination.String() != "10.77.0.1:7" || x.Proto != 17 || x.Bytes != 52 ||
		x.Segments != 1 || x.Cookie == 0 || time.Since(x.Time).Abs() > 5*time.Second {
		t.Errorf("sample %+v", x)
	}
	f := s.host.flood("10.9.0.2:7")
	begin := time.Now()
	time.Sleep(500 * time.Millisecond)
	sent := f.end()
	s.cap.settle()
	most := int(time.Since(begin)/(100*time.Millisecond)+2) * 5 * 2 // per window and CPU
	if n := len(got); n < 5 || n > most+rounds {
		t.Errorf("%d samples of %d packets, want at most %d", n, sent, most)
	}
	if st := s.status(); st.Suppressed == 0 {
		t.Error("status does not say that samples were held back")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestSampleWaits: what is told while nobody reads, or while there is no process, is still there.
func TestSampleWaits(t *testing.T) {
	s := newStage(t, Options{PinDir: pinDir(t)})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...), Action: Drop})
	s.w.Close()
	cmd := s.host.start("udp-unconnected", "[fd09::2]:7")
	cmd.Wait()
	s.w = s.host.open(s.w.opts)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var pid int
	s.w.Read(ctx, func(x Sample) {
		if x.Dropped && x.Comm == "udp-unconnected" {
			pid = x.PID
			cancel()
		}
	})
	if pid != cmd.Process.Pid {
		t.Errorf("sample names process %d, want %d", pid, cmd.Process.Pid)
	}
	if err := s.w.Close(); err != nil {
		t.Error(err)
	}
	if err := s.w.Read(t.Context(), func(Sample) {}); err == nil {
		t.Error("read from a closed witness")
	}
}

func TestCgroupMount(t *testing.T) {
	for line, want := range map[string]string{
		"40 30 0:37 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw":          "/sys/fs/cgroup/unified",
		"40 30 0:37 / /sys/fs/cgroup rw shared:4 master:1 - cgroup2 none rw,nsdelegate": "/sys/fs/cgroup",
		"40 30 0:37 /a /mnt rw - cgroup2 none rw":                                       "",
		"31 30 0:28 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu":            "",
		"": "",
	} {
		if got := cgroupMount(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// TestNoPlaceForCgroup: where cgroup2 is not mounted, as within ip netns exec, a mount of our own serves.
func TestNoPlaceForCgroup(t *testing.T) {
	fd, err := openCgroupUnmounted()
	if err != nil {
		testenv.Lacking(t, "%v", err)
	}
	defer fd.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(fd.Fd()), &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Errorf("type %#x, %v", st.Type, err)
	}
}

// TestPrivilege: without privileges, the error says which are missing, and nothing is left behind.
func TestPrivilege(t *testing.T) {
	n := newNode(t)
	cmd := n.start("nobody", filepath.Join(t.TempDir(), "bpf"))
	if err := cmd.Wait(); err != nil {
		t.Error("see above: ", err)
	}
}

// TestFewPrivileges: three capabilities are enough to count and to drop.
func TestFewPrivileges(t *testing.T) {
	n := newNode(t)
	cmd := childOf("few", filepath.Join(t.TempDir(), "bpf"))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
		AmbientCaps: []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN},
	}
	n.try(cmd.Start)
	if err := cmd.Wait(); err != nil {
		t.Error("see above: ", err)
	}
}

// TestCleanMachine: what a witness attached to the machine's cgroup is gone with it.
func TestCleanMachine(t *testing.T) {
	n := newNode(t)
	w := n.open(Options{})
	var ours ebpf.ProgramID
	err := w.do(func() error {
		info, err := w.held[senderProgSenderCreate].link.Info()
		ours = info.Program
		return err
	})
	if err != nil || !slices.Contains(cgroupPrograms(t), ours) {
		t.Errorf("no hook attached: %v", err)
	}
	w.Close()
	if slices.Contains(cgroupPrograms(t), ours) {
		t.Error("a hook was left attached")
	}
}

func (s *stage) dial(addr string) (c net.Conn) {
	s.t.Helper()
	s.host.try(func() (err error) {
		c, err = net.Dial("udp", addr)
		return err
	})
	s.t.Cleanup(func() { c.Close() })
	return c
}
