package testenv

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Tun is a TUN device whose far end is the test: it swallows what enters the
// tunnel, counts it and answers nothing, unless [Tun.Inject] does. Its methods
// may be called by several goroutines at once.
type Tun struct {
	ns   *NS
	name string
	file *os.File
	done chan struct{}

	mu       sync.Mutex // guards counters
	counters []*Counter
}

// tunQueue is the device's queue length: what may wait for the reader.
const tunQueue = 20000

// NewTun makes a TUN device in the namespace, up, with the given addresses.
// The device exists until Close or the end of the process.
func NewTun(n *NS, name string, addrs ...netip.Prefix) (*Tun, error) {
	u := &Tun{ns: n, name: name, done: make(chan struct{})}
	err := n.Do(func() (err error) {
		if u.file, err = openTun(name); err != nil {
			return err
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetTxQLen(link, tunQueue); err != nil {
			return fmt.Errorf("queue length: %w", err)
		}
		return End{NS: n, Name: name, Addrs: addrs}.configure()
	})
	if err != nil {
		if u.file != nil {
			err = errors.Join(err, u.file.Close())
		}
		return nil, fmt.Errorf("tun %s in %s: %w", name, n, err)
	}
	go u.read()
	return u, nil
}

// OpenTun is [NewTun] for tests: it is closed at the end of the test.
func OpenTun(t TB, n *NS, name string, addrs ...netip.Prefix) *Tun {
	t.Helper()
	u, err := NewTun(n, name, addrs...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { _ = u.Close() })
	return u
}

func openTun(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make device: %w", err)
	}
	return os.NewFile(uintptr(fd), "tun:"+name), nil
}

// Name is the device's name.
func (u *Tun) Name() string { return u.name }

func (u *Tun) read() {
	defer close(u.done)
	conn, err := u.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1<<16)
	_ = conn.Read(func(fd uintptr) bool { // false: wait until there is more
		return !u.drain(int(fd), buf)
	})
}

// drain counts everything that waits in the device's queue, and reports
// whether there is still a device. The lock is held so that whoever has it
// knows that nothing is read but not counted.
func (u *Tun) drain(fd int, buf []byte) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for {
		size, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EIO)
		default:
			for _, c := range u.counters {
				c.observe(buf[:size], size)
			}
		}
	}
}

// Count starts a counter of the packets that enter the tunnel from now on.
func (u *Tun) Count(filter Filter) *Counter {
	c := &Counter{filter: filter}
	u.drainNow()
	start := u.dropped()
	c.stop = func() error {
		u.drainNow()
		u.mu.Lock()
		u.counters = slices.DeleteFunc(u.counters, func(other *Counter) bool { return other == c })
		u.mu.Unlock()
		c.lost(u.dropped() - start)
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.counters = append(u.counters, c)
	return c
}

// drainNow does the reader's work until the queue is empty.
func (u *Tun) drainNow() {
	if conn, err := u.file.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { u.drain(int(fd), make([]byte, 1<<16)) })
	}
}

// dropped is how many packets the device threw away because its queue was
// full.
func (u *Tun) dropped() (drops uint64) {
	_ = u.ns.Do(func() error {
		link, err := netlink.LinkByName(u.name)
		if err == nil && link.Attrs().Statistics != nil {
			drops = link.Attrs().Statistics.TxDropped
		}
		return err
	})
	return drops
}

// Inject lets an IP packet come out of the tunnel.
func (u *Tun) Inject(ipPacket []byte) error {
	if _, err := u.file.Write(ipPacket); err != nil {
		return fmt.Errorf("inject into %s: %w", u.name, err)
	}
	return nil
}

// Close removes the device. Closing twice is a success.
func (u *Tun) Close() error {
	err := u.file.Close()
	<-u.done
	if err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close %s: %w", u.name, err)
	}
	return nil
}
