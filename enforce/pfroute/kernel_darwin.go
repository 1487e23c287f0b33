package pfroute

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/net/route"
	"golang.org/x/sys/unix"
)

// New returns the routing of this Mac. Reading needs no privilege; changing
// routes needs root.
func New() (*System, error) { return newSystem(darwin{}), nil }

type darwin struct{}

func (darwin) routes() ([]byte, error) {
	return route.FetchRIB(unix.AF_UNSPEC, route.RIBTypeRoute, 0)
}

func (darwin) interfaces() ([]byte, error) {
	return route.FetchRIB(unix.AF_UNSPEC, route.RIBTypeInterface, 0)
}

// receiveBuffer is more than the default 8 KiB, which eighty announcements fill.
const receiveBuffer = 1 << 20

func (darwin) open() (socket, error) {
	fd, err := unix.Socket(unix.AF_ROUTE, unix.SOCK_RAW, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	unix.CloseOnExec(fd)
	// What kern.ipc.maxsockbuf does not allow is done without: the ticker is there.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set non-blocking: %w", err)
	}
	return os.NewFile(uintptr(fd), "route"), nil
}

func (darwin) process(pid uint32) string {
	if pid == 0 {
		return ""
	}
	info, err := unix.SysctlKinfoProc("kern.proc.pid", int(pid))
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.Proc.P_comm[:])
}

// uptime goes on while the machine sleeps (clock_gettime(3)).
func (darwin) uptime() (time.Duration, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Duration(ts.Nano()), err
}

func (darwin) boot() (string, error) { return unix.Sysctl("kern.bootsessionuuid") }
