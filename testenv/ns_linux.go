package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	netnsDir   = "/run/netns"
	namePrefix = "testenv-"
)

// NS is a network namespace. Its methods may be used by several goroutines
// at once, but not after Close.
type NS struct {
	name    string
	fd      *os.File
	foreign bool // made by others: nothing of it is removed
}

var nsCount atomic.Uint64

// NewNS makes a namespace with its loopback up and IPv6 duplicate address
// detection off (addresses are usable at once). Its name holds the process id,
// a count and label; while it is open, "ip netns exec NAME …" works from any
// other process. The caller must Close it.
func NewNS(label string) (*NS, error) {
	name := fmt.Sprintf("%s%d-%d-%s", namePrefix, os.Getpid(), nsCount.Add(1), label)
	n := &NS{name: name}
	if err := onThread(n.create); err != nil {
		return nil, errors.Join(fmt.Errorf("make namespace %s: %w", name, err), n.Close())
	}
	return n, nil
}

// CurrentNS is the namespace that the calling thread is in, under the name
// "host": for tests that have a whole machine to themselves. Close lets go of it
// and leaves it as it is.
func CurrentNS() (*NS, error) {
	fd, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the current namespace: %w", err)
	}
	return &NS{name: "host", fd: fd, foreign: true}, nil
}

// create turns the calling thread's namespace into a new one and names it.
func (n *NS) create() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	fd, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	n.fd = fd
	if err := bindName(n.path()); err != nil {
		return err
	}
	for _, conf := range []string{"all", "default"} {
		if err := writeSysctl("net.ipv6.conf."+conf+".accept_dad", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return linkUp("lo")
}

// bindName gives the calling thread's namespace a name in the file system.
func bindName(path string) error {
	if err := shareFolder(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind to %s: %w", path, err)
	}
	return nil
}

// shareFolder makes the folder of names a shared mount point, as "ip netns add"
// does, before there is a name in it: its mount would hide the names that are
// there, and none of them could be removed any more. The lock is the one that ip
// takes.
func shareFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // only read
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	shared := func() error { return unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	if shared() == nil {
		return nil
	}
	if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s on itself: %w", dir, err)
	}
	return shared()
}

// Close removes the namespace's name and lets go of it. The kernel destroys
// it, with all its links, when the last process in it has ended. Closing twice
// is a success.
func (n *NS) Close() error {
	var errs []error
	if !n.foreign {
		errs = append(errs, removeName(n.path()))
	}
	if n.fd != nil {
		if err := n.fd.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func removeName(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Namespace is [NewNS] for tests: it is closed at the end of the test.
func Namespace(t TB, label string) *NS {
	t.Helper()
	n, err := NewNS(label)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close namespace: %v", err)
		}
	})
	return n
}

// Sweep removes the names of namespaces that were left by processes which
// ended without cleaning up, and reports how many.
func Sweep() (int, error) {
	paths, err := filepath.Glob(filepath.Join(netnsDir, namePrefix+"*"))
	if err != nil {
		return 0, err
	}
	var swept int
	var errs []error
	for _, path := range paths {
		if ownerLives(filepath.Base(path)) {
			continue
		}
		if err := removeName(path); err != nil {
			errs = append(errs, err)
			continue
		}
		swept++
	}
	return swept, errors.Join(errs...)
}

// ownerLives reports whether the process in a namespace's name exists.
func ownerLives(name string) bool {
	pid, err := strconv.Atoi(strings.SplitN(strings.TrimPrefix(name, namePrefix), "-", 2)[0])
	return err != nil || !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// Name is the namespace's name for "ip netns exec".
func (n *NS) Name() string { return n.name }

// String is Name.
func (n *NS) String() string { return n.name }

func (n *NS) path() string { return filepath.Join(netnsDir, n.name) }

// Fd is the namespace's file descriptor, for interfaces that take one
// (netlink sockets, IFLA_NET_NS_FD). It is valid until Close.
func (n *NS) Fd() int { return int(n.fd.Fd()) }

// Do runs f on a new OS thread inside the namespace and returns f's error.
// Sockets that f opens stay in the namespace. The thread ends with f, so f may
// change it in any way, but goroutines that f starts are not in the namespace.
// If f ends its goroutine (runtime.Goexit), Do returns an error.
func (n *NS) Do(f func() error) error {
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return f()
	})
}

// enter moves the calling thread into the namespace, for good.
func (n *NS) enter() error {
	if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", n.name, err)
	}
	return nil
}

// Run is [NS.Do] for tests: f may call t.Fatalf, which stops the test.
func (n *NS) Run(t TB, f func()) {
	t.Helper()
	err := n.Do(func() error { f(); return nil })
	switch {
	case errors.Is(err, errGoexit) && t.Failed():
		runtime.Goexit() // f said why
	case err != nil:
		t.Fatalf("run in %s: %v", n.name, err)
	}
}

// Sysctl sets a kernel parameter inside the namespace, key written as for
// sysctl(8): "net.ipv4.conf.all.rp_filter". A dot within an interface's name
// is written as a slash.
func (n *NS) Sysctl(t TB, key, value string) {
	t.Helper()
	if err := n.Do(func() error { return writeSysctl(key, value) }); err != nil {
		t.Fatalf("in %s: %v", n.name, err)
	}
}

// writeSysctl acts on the calling thread's namespace: /proc/sys/net shows
// each reader its own.
func writeSysctl(key, value string) error {
	swap := strings.NewReplacer(".", "/", "/", ".")
	if err := os.WriteFile("/proc/sys/"+swap.Replace(key), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s = %s: %w", key, value, err)
	}
	return nil
}

var errGoexit = errors.New("the function ended its goroutine")

// onThread runs f on an OS thread that ends with it.
func onThread(f func() error) error {
	result := make(chan error, 1)
	spawn(func() {
		err := errGoexit
		defer func() { result <- err }()
		err = f()
	})
	return <-result
}

// spawn starts f on an OS thread of its own, which the runtime ends when f
// returns because it stays locked.
func spawn(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		// The main thread never ends and would stay in whatever namespace f
		// leaves it. While this goroutine holds it, another gets another.
		defer runtime.UnlockOSThread()
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			f()
		}()
		<-done
	}()
}
