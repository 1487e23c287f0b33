package loader

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

func init() { runtime.LockOSThread() } // a child's name is that of its first thread

func TestMain(m *testing.M) {
	if kind := os.Getenv("CULVERT_TEST_CHILD"); kind != "" {
		child(kind)
		return
	}
	os.Exit(m.Run())
}

// node is a network namespace and the thread that lives in it.
type node struct {
	t  *testing.T
	ns namespace
	do func(func())

	leave func() // ends the thread: nothing of the test holds the namespace any more
}

func newNode(t *testing.T) *node {
	t.Helper()
	work, ready := make(chan func()), make(chan error)
	n := &node{t: t}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies, and the namespace with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.ns, err = openNamespace()
		}
		ready <- err
		for f := range work {
			f()
		}
	}()
	if err := <-ready; errors.Is(err, unix.EPERM) {
		testenv.Lacking(t, "needs root: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	n.do = func(f func()) {
		done := make(chan struct{})
		work <- func() { defer close(done); f() }
		<-done
	}
	n.leave = sync.OnceFunc(func() { close(work); n.ns.close() })
	t.Cleanup(n.leave)
	n.try(func() error { return netlink.LinkSetUp(byName("lo")) })
	return n
}

// try runs f in the namespace; an error ends the test.
func (n *node) try(f func() error) {
	n.t.Helper()
	var err error
	n.do(func() { err = f() })
	if err != nil {
		n.t.Fatal(err)
	}
}

func byName(name string) netlink.Link {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name}}
	}
	return l
}

func (n *node) index(name string) (index int) {
	n.do(func() { index = byName(name).Attrs().Index })
	return index
}

// sysctl writes a setting of the namespace.
func (n *node) sysctl(path, value string) {
	n.t.Helper()
	n.try(func() error { return os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(value), 0) })
}

// wire joins two nodes by a veth pair whose ends have fixed addresses, and tells each the other's.
func wire(a, b *node, nameA, nameB string, addrA, addrB []string) {
	a.t.Helper()
	a.try(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: nameA, HardwareAddr: mac(nameA), MTU: 1500, TxQLen: 1000},
			PeerName:  nameB, PeerHardwareAddr: mac(nameB), PeerNamespace: netlink.NsFd(int(b.ns.file.Fd())),
		})
	})
	a.up(nameA, addrA)
	b.up(nameB, addrB)
	for _, x := range []struct {
		n     *node
		dev   string
		other string
		addrs []string
	}{{a, nameA, nameB, addrB}, {b, nameB, nameA, addrA}} {
		for _, s := range x.addrs {
			x.n.neighbour(x.dev, netip.MustParsePrefix(s).Addr(), mac(x.other))
		}
	}
}

// up gives a device its addresses, without any chatter of its own.
func (n *node) up(dev string, addrs []string) {
	n.t.Helper()
	n.sysctl("ipv6/conf/"+dev+"/accept_ra", "0")
	n.sysctl("ipv6/conf/"+dev+"/router_solicitations", "0")
	n.sysctl("ipv6/conf/"+dev+"/dad_transmits", "0")
	n.try(func() error {
		l := byName(dev)
		for _, s := range addrs {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, a); err != nil {
				return fmt.Errorf("add %s: %w", s, err)
			}
		}
		return netlink.LinkSetUp(l)
	})
}

func (n *node) neighbour(dev string, ip netip.Addr, hw net.HardwareAddr) {
	n.t.Helper()
	n.try(func() error {
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: byName(dev).Attrs().Index, IP: ip.AsSlice(), HardwareAddr: hw, State: netlink.NUD_PERMANENT,
		})
	})
}

func (n *node) route(dst, via, dev string) {
	n.t.Helper()
	n.try(func() error {
		d, err := netlink.ParseIPNet(dst)
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{
			LinkIndex: byName(dev).Attrs().Index, Dst: d, Gw: net.ParseIP(via),
		})
	})
}

func mac(name string) net.HardwareAddr {
	hw := net.HardwareAddr{2, 0, 0, 0, 0, 0}
	copy(hw[2:], name)
	return hw
}

// segment makes a device's kernel cut up GSO buffers before the wire, as a device without offloads does.
func (n *node) segment(dev string) {
	n.t.Helper()
	n.try(func() error {
		names, err := featureNames(dev)
		if err != nil {
			return fmt.Errorf("list features: %w", err)
		}
		set := featureSet{cmd: unix.ETHTOOL_SFEATURES, size: 2}
		for i, name := range names {
			if strings.HasSuffix(name, "-segmentation") && i < 64 {
				set.blocks[i/32].valid |= 1 << (i % 32)
			}
		}
		return ethtool(dev, unsafe.Pointer(&set))
	})
}

type featureSet struct {
	cmd, size uint32
	blocks    [2]struct{ valid, requested uint32 }
}

// featureNames lists the bits of a device's feature set.
func featureNames(dev string) ([]string, error) {
	var req struct {
		cmd, set, count uint32
		data            [256][32]byte
	}
	req.cmd, req.set = unix.ETHTOOL_GSTRINGS, 4
	if err := ethtool(dev, unsafe.Pointer(&req)); err != nil {
		return nil, err
	}
	var names []string
	for _, b := range req.data[:req.count] {
		names = append(names, unix.ByteSliceToString(b[:]))
	}
	return names, nil
}

func ethtool(dev string, arg unsafe.Pointer) error {
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		pad  [16]byte
	}{data: arg}
	copy(req.name[:], dev)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); e != 0 {
		return e
	}
	return nil
}

// capture counts, on the receiving end, what arrives for the given prefixes.
type capture struct {
	fd   int
	stop atomic.Bool
	done sync.WaitGroup
	read atomic.Int64 // frames of any kind
	kept int64        // of which the kernel says that it queued them; settle's own
	lost int64
	mu   sync.Mutex // guards the sums
	sum  Counter
}

func (n *node) capture(dev string, prefixes ...string) *capture {
	n.t.Helper()
	var want []netip.Prefix
	for _, p := range prefixes {
		want = append(want, netip.MustParsePrefix(p))
	}
	c := &capture{}
	n.try(func() (err error) {
		c.fd, err = packetSocket(dev)
		return err
	})
	c.done.Go(func() { c.run(want) })
	n.t.Cleanup(func() {
		c.stop.Store(true)
		c.done.Wait()
		if c.statistics(); c.lost > 0 {
			n.t.Errorf("the capture itself lost %d packets", c.lost)
		}
		unix.Close(c.fd)
	})
	return c
}

func packetSocket(dev string) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: indexOf(dev)}))
	return fd, err
}

// packetSocket is one to send by.
func (n *node) packetSocket() int {
	n.t.Helper()
	var fd int
	n.try(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	n.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// indexOf is 0, all devices, for no name.
func indexOf(dev string) int {
	if dev == "" {
		return 0
	}
	return byName(dev).Attrs().Index
}

// statistics adds up what the kernel says, which forgets when asked.
func (c *capture) statistics() {
	if st, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		c.kept += int64(st.Packets) - int64(st.Drops)
		c.lost += int64(st.Drops)
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// read counts until told to stop.
func (c *capture) run(want []netip.Prefix) {
	frame, oob := make([]byte, 1<<17), make([]byte, 256)
	for !c.stop.Load() {
		n, oobn, _, from, err := unix.Recvmsg(c.fd, frame, oob, 0)
		if err != nil {
			continue // nothing for a while
		}
		c.read.Add(1)
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if within(want, destination(frame[:n])) {
			c.mu.Lock()
			c.sum.Packets++
			c.sum.Bytes += uint64(n + tagBytes(oob[:oobn]))
			c.mu.Unlock()
		}
	}
}

// tagBytes is 4 when the receiving kernel took a tag off the frame.
func tagBytes(oob []byte) int {
	msgs, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 20 {
			if binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_VLAN_VALID != 0 {
				return 4
			}
		}
	}
	return 0
}

func within(want []netip.Prefix, a netip.Addr) bool {
	for _, p := range want {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// destination parses a frame by means of its own, to be compared with the program's.
func destination(frame []byte) netip.Addr {
	at := 12
	for len(frame) >= at+4 && (frame[at] == 0x81 || frame[at] == 0x88 && frame[at+1] == 0xa8) {
		at += 4
	}
	switch {
	case len(frame) >= at+22 && frame[at] == 8 && frame[at+1] == 0:
		return netip.AddrFrom4([4]byte(frame[at+18:]))
	case len(frame) >= at+42 && frame[at] == 0x86 && frame[at+1] == 0xdd:
		return netip.AddrFrom16([16]byte(frame[at+26:]))
	}
	return netip.Addr{}
}

func (c *capture) total() Counter {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum
}

// settle waits until all that the kernel queued is read, and nothing more has come for a while.
func (c *capture) settle() Counter {
	last, since := int64(-1), time.Now()
	for time.Since(since) < 100*time.Millisecond {
		c.statistics()
		if now := c.kept; now != last || c.read.Load() < now {
			last, since = now, time.Now()
		}
		time.Sleep(5 * time.Millisecond)
	}
	return c.total()
}

// open opens a witness in the namespace; it and its pins are gone after the test.
func (n *node) open(opts Options) *Witness {
	n.t.Helper()
	if opts.PinDir == "" {
		opts.PinDir = pinDir(n.t)
	}
	var w *Witness
	n.try(func() (err error) {
		w, err = Open(opts)
		return err
	})
	n.t.Cleanup(func() {
		if err := w.Close(); err != nil {
			n.t.Error(err)
		}
		n.release(opts)
	})
	return w
}

func (n *node) release(opts Options) {
	n.try(func() error { return Release(opts) })
}

// pinDir is a folder for one test's own BPF file system, which must be gone in the end.
func pinDir(t *testing.T) string {
	dir := filepath.Join(t.TempDir(), "bpf")
	t.Cleanup(func() {
		if isBPF(dir) {
			unix.Unmount(dir, unix.MNT_DETACH)
			t.Errorf("%s was still mounted", dir)
		}
	})
	return dir
}

func set(t *testing.T, w *Witness, cfg Config) {
	t.Helper()
	if err := w.Set(cfg); err != nil {
		t.Fatal(err)
	}
}

// leaks sums a witness's counters on one interface.
func leaks(t *testing.T, w *Witness, index int, pick func(Reason) bool) Counter {
	t.Helper()
	list, err := w.Counters()
	if err != nil {
		t.Fatal(err)
	}
	var sum Counter
	for _, c := range list {
		if c.Interface == index && pick(c.Reason) {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
			sum.Dropped += c.Dropped
		}
	}
	return sum
}

func minus(a, b Counter) Counter {
	return Counter{Packets: a.Packets - b.Packets, Bytes: a.Bytes - b.Bytes, Dropped: a.Dropped - b.Dropped}
}

// start runs this test's binary as a child of the given kind, in the namespace.
func (n *node) start(kind string, args ...string) *exec.Cmd {
	n.t.Helper()
	cmd := childOf(kind, args...)
	n.try(cmd.Start)
	return cmd
}

// startReady does so and waits for the child's first line.
func (n *node) startReady(kind string, args ...string) *exec.Cmd {
	n.t.Helper()
	cmd := childOf(kind, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	n.try(cmd.Start)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		n.t.Fatalf("%s said %q: %v", kind, line, err)
	}
	return cmd
}

func childOf(kind string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "CULVERT_TEST_CHILD="+kind, "CULVERT_TEST_ARGS="+strings.Join(args, " "))
	cmd.Stderr = os.Stderr
	return cmd
}
