package loader

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace: a handle on it, and what tells it from all others.
type namespace struct {
	file   *os.File
	inode  uint64
	cookie uint64 // 0 where the kernel does not tell (before 5.14)
}

// openNamespace returns the calling thread's.
func openNamespace() (namespace, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	file, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return namespace{}, fmt.Errorf("open network namespace: %w", err)
	}
	inode, err := inodeOf(file)
	if err != nil {
		file.Close()
		return namespace{}, err
	}
	return namespace{file: file, inode: inode, cookie: netnsCookie()}, nil
}

func inodeOf(file *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", file.Name(), err)
	}
	return st.Ino, nil
}

// netnsCookie asks a socket, for which no privilege is needed.
func netnsCookie() uint64 {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}

// NamespaceName tells the calling thread's network namespace from all others of this boot.
func NamespaceName() (string, error) {
	ns, err := openNamespace()
	if err != nil {
		return "", err
	}
	defer ns.close()
	return ns.name(), nil
}

// name is that of the namespace's folder of pins. The inode alone may be given again once the namespace is gone.
func (n namespace) name() string { return fmt.Sprintf("net-%d-%d", n.inode, n.cookie) }

func (n namespace) close() { n.file.Close() }

// enter locks the goroutine to a thread of the namespace. A thread that had to be moved there dies with its goroutine.
func (n namespace) enter() (leave func(), err error) {
	runtime.LockOSThread()
	here, err := openNamespace()
	if err != nil {
		return nil, err
	}
	defer here.close()
	if here.inode == n.inode {
		return runtime.UnlockOSThread, nil
	}
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter network namespace: %w", err)
	}
	return func() {}, nil
}
