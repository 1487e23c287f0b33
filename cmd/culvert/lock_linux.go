package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
)

// lockNames is how many names the place has. An unprivileged process can take
// a name, but cannot enforce anything: a holder that may not is passed over.
const lockNames = 8

// acquireLock takes the place of this network namespace's one daemon until the
// result is closed or the process ends, and tells whoever asks who has it.
func acquireLock(h holder) (io.Closer, error) {
	var err error
	for i := range lockNames {
		name := lockName
		if i > 0 {
			name += "-" + strconv.Itoa(i)
		}
		var l io.Closer
		var held *heldError
		if l, err = acquireNamed(name, h); err == nil || !errors.As(err, &held) || held.by.mayEnforce() {
			return l, err
		}
	}
	return nil, err
}

// mayEnforce reports whether the holder of a name can be a daemon.
func (h holder) mayEnforce() bool { return h.PID == 0 || h.uid == 0 || h.uid == uint32(os.Getuid()) }

func acquireNamed(name string, h holder) (io.Closer, error) {
	addr := &net.UnixAddr{Name: name, Net: "unix"}
	for range 3 {
		l, err := net.ListenUnix("unix", addr)
		if err == nil {
			go tellHolder(l, h)
			return l, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("place of the daemon: %w", err)
		}
		if by, err := askHolder(addr); err == nil {
			return nil, withCode(exitUsage, &heldError{by})
		}
		// It ended between the two: try again.
	}
	return nil, withCode(exitUsage, &heldError{})
}

// tellHolder answers until the socket is closed.
func tellHolder(l *net.UnixListener, h holder) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		_ = json.NewEncoder(conn).Encode(h)
		_ = conn.Close()
	}
}

// askHolder finds out who holds the place. The process is the kernel's word,
// the rest is the holder's own.
func askHolder(addr *net.UnixAddr) (holder, error) {
	conn, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		return holder{}, err
	}
	defer conn.Close() //nolint:errcheck // only read
	cred, err := control.Peer(conn)
	if err != nil {
		return holder{}, err
	}
	var h holder
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if err := json.NewDecoder(io.LimitReader(conn, 4096)).Decode(&h); err != nil {
		h = holder{}
	}
	h.PID, h.uid = int(cred.Pid), cred.Uid
	return h, nil
}
