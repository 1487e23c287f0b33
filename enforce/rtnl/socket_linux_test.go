package rtnl

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"golang.org/x/sys/unix"
)

// kernelless returns a socket whose other end is the test's.
func kernelless(t *testing.T) (s *socket, kernel int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return &socket{fd: fds[0], in: make([]byte, inputSize)}, fds[1]
}

// TestCutOffAnswer: an answer that does not fit is an error, not a shorter answer.
func TestCutOffAnswer(t *testing.T) {
	s, kernel := kernelless(t)
	for n, want := range map[int]error{inputSize: nil, inputSize + 4: unix.EMSGSIZE} {
		if _, err := unix.Write(kernel, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if b, err := s.read(); !errors.Is(err, want) || (want == nil && len(b) != n) {
			t.Errorf("of %d bytes: %d, %v", n, len(b), err)
		}
	}
	s.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	if _, err := unix.Write(kernel, make([]byte, inputSize+4)); err != nil {
		t.Fatal(err)
	}
	if err := s.dump(t.Context(), func(*message) bool { return true }); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a dump that was cut off ends in %v", err)
	}
}

// TestNoAnswer: a kernel that does not answer is waited for so long and no longer.
func TestNoAnswer(t *testing.T) {
	s, _ := kernelless(t)
	s.patience = 20 * time.Millisecond
	s.begin(unix.RTM_NEWROUTE, unix.NLM_F_ACK)
	if err := s.do(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a change ends in %v", err)
	}
	s.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	if err := s.dump(t.Context(), func(*message) bool { return true }); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a dump ends in %v", err)
	}
	r := plan.Route{Dst: netip.MustParsePrefix("10.0.0.0/8")}
	if err := deleteRoute(s, nil, &r); err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a delete ends in %v", err)
	}
}

// TestUnreadableAnnouncement: half a message is a reason to read the table.
func TestUnreadableAnnouncement(t *testing.T) {
	w := &watcher{sink: enforce.NewSink()}
	w.datagram(append(make([]byte, 0, 20), 200, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4))
	select {
	case <-w.sink.DirtyC():
	default:
		t.Error("it was passed over in silence")
	}
}
