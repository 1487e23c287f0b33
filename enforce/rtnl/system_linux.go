package rtnl

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// System is the main routing table of one network namespace. It implements
// enforce.System.
type System struct {
	ns *namespace
	// before is the other tables whose routes decide before main's do, as Facts saw
	// them last: what changes there is watched too.
	before atomic.Pointer[map[uint32]bool]
	buffer int // in bytes, of what Watch hears by

	// mu guards changes, the socket that Apply works on.
	mu      sync.Mutex
	changes *socket
}

// New opens the routing of the calling thread's network namespace. It needs no
// privilege to read; changing routes needs CAP_NET_ADMIN over the namespace.
func New() (*System, error) {
	ns, err := currentNamespace()
	if err != nil {
		return nil, err
	}
	changes, err := openSocket()
	if err != nil {
		ns.close()
		return nil, err
	}
	return &System{ns: ns, changes: changes, buffer: receiveBuffer}, nil
}

// Close releases what New opened. No other method may be running.
func (s *System) Close() error {
	s.ns.close()
	return s.changes.close()
}

var _ enforce.System = (*System)(nil)

// namespace opens sockets in the network namespace that a System belongs to,
// from whichever thread asks.
type namespace struct {
	file     *os.File
	stat     unix.Stat_t
	patience time.Duration // how long an answer may take
	// What the System asks by is made with these, where the kernel is to be asked.
	socket func() (*socket, error)
	dial   func() (*netlink.Conn, error)
}

const threadNamespace = "/proc/thread-self/ns/net"

func currentNamespace() (*namespace, error) {
	f, err := os.Open(threadNamespace)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	ns := &namespace{file: f, patience: answerWait, socket: openSocket, dial: dialNetlink}
	if err := unix.Fstat(int(f.Fd()), &ns.stat); err != nil {
		f.Close()
		return nil, fmt.Errorf("read network namespace: %w", err)
	}
	return ns, nil
}

func (ns *namespace) close() { ns.file.Close() }

// open opens a raw socket, on which each answer may take the namespace's patience.
func (ns *namespace) open() (s *socket, err error) {
	err = ns.do(func() error {
		if s, err = ns.socket(); err == nil {
			s.patience = ns.patience
		}
		return err
	})
	return s, err
}

// do runs f in the namespace: here when the thread is in it already, which in
// a daemon it always is, else on a thread that enters it and then ends.
func (ns *namespace) do(f func() error) error {
	runtime.LockOSThread()
	var here unix.Stat_t
	if err := unix.Stat(threadNamespace, &here); err == nil && here.Ino == ns.stat.Ino && here.Dev == ns.stat.Dev {
		defer runtime.UnlockOSThread()
		return f()
	}
	runtime.UnlockOSThread()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Binding returns what a journal of this boot and namespace is bound to.
func Binding() (enforce.Binding, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return enforce.Binding{}, fmt.Errorf("read boot id: %w", err)
	}
	ns, err := os.Readlink(threadNamespace)
	if err != nil {
		return enforce.Binding{}, fmt.Errorf("read network namespace: %w", err)
	}
	b := enforce.Binding{Boot: strings.TrimSpace(string(boot)), Namespace: ns}
	if cookie, err := namespaceCookie(); err == nil {
		b.Namespace += fmt.Sprintf("#%d", cookie)
	}
	return b, nil
}

// namespaceCookie returns the number of the thread's network namespace that,
// unlike its inode's, is never used again (SO_NETNS_COOKIE, since Linux 5.14).
func namespaceCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}
