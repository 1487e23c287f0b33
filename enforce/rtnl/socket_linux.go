package rtnl

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is one raw RTNETLINK socket. It is used by one goroutine at a time,
// and once warm it does not allocate.
type socket struct {
	fd       int
	port     uint32
	seq      uint32
	in       []byte
	out      []byte
	patience time.Duration // how long an answer may take; 0: answerWait

	echo []byte // the route that the last request with NLM_F_ECHO deleted
	said []byte // what the kernel says is wrong with the last request, "" where it has no words
}

// inputSize holds any datagram: dumps are cut to 32 KiB by the kernel
// (netlink_dump in net/netlink/af_netlink.c), notifications are smaller.
const inputSize = 64 << 10

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	s := &socket{fd: fd, in: make([]byte, inputSize), out: make([]byte, 0, 8<<10)}
	if err := s.bind(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return s, nil
}

func (s *socket) bind() error {
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netlink socket: %w", err)
	}
	sa, err := unix.Getsockname(s.fd)
	if err != nil {
		return fmt.Errorf("name netlink socket: %w", err)
	}
	s.port = sa.(*unix.SockaddrNetlink).Pid
	// Both since Linux 4.20 and 4.12; without them dumps are of every table and
	// errors have no text, which the callers do not depend on for correctness.
	_ = unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	_ = unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return nil
}

func (s *socket) close() error {
	if err := unix.Close(s.fd); err != nil {
		return fmt.Errorf("close netlink socket: %w", err)
	}
	return nil
}

// begin starts a request in the output buffer; the body is appended to s.out.
func (s *socket) begin(typ, flags uint16) {
	s.seq++
	s.out = append(s.out[:0], 0, 0, 0, 0)
	s.out = native.AppendUint16(s.out, typ)
	s.out = native.AppendUint16(s.out, flags|unix.NLM_F_REQUEST)
	s.out = native.AppendUint32(s.out, s.seq)
	s.out = native.AppendUint32(s.out, 0)
}

// send completes the request and hands it to the kernel, which carries a
// change out before write returns.
func (s *socket) send() error {
	native.PutUint32(s.out, uint32(len(s.out)))
	_, err := unix.Write(s.fd, s.out)
	return err
}

// read takes one datagram, waiting for it if need be.
func (s *socket) read() ([]byte, error) {
	for {
		n, err := s.receive()
		switch {
		case err == nil:
			return s.in[:n], nil
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			if err := s.wait(); err != nil {
				return nil, err
			}
		default:
			return nil, err
		}
	}
}

// receive takes one datagram into the input buffer without waiting. One that does
// not fit is EMSGSIZE: cut off, it would read as a shorter answer.
func (s *socket) receive() (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(s.fd), uintptr(unsafe.Pointer(unsafe.SliceData(s.in))), uintptr(len(s.in)),
		unix.MSG_TRUNC, 0, 0)
	switch {
	case errno != 0:
		return 0, errno
	case int(n) > len(s.in):
		return 0, unix.EMSGSIZE
	}
	return int(n), nil
}

// answerWait bounds how long the kernel may take to answer; it answers changes
// at once and dumps piece by piece, so this is never reached in health. Who waits is
// the loop that also says how it is: what feeds the unit's watchdog asks it every ten
// seconds, for as long, and ends the daemon after 30 (WatchdogSec of culvert.service).
const answerWait = 8 * time.Second

// errNoAnswer is what an unanswered request comes to; callers say which it was.
var errNoAnswer = fmt.Errorf("the kernel's netlink gave no answer for a long time: %w", os.ErrDeadlineExceeded)

func (s *socket) wait() error {
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
	for {
		switch n, err := unix.Poll(fds, int(cmp.Or(s.patience, answerWait).Milliseconds())); {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return errNoAnswer
		default:
			return nil
		}
	}
}

// nextMessage splits the first message off a datagram.
func nextMessage(b []byte) (hdr unix.NlMsghdr, body, rest []byte, ok bool) {
	if len(b) < hdrLen {
		return hdr, nil, nil, false
	}
	hdr = unix.NlMsghdr{
		Len: native.Uint32(b), Type: native.Uint16(b[4:]), Flags: native.Uint16(b[6:]),
		Seq: native.Uint32(b[8:]), Pid: native.Uint32(b[12:]),
	}
	if hdr.Len < hdrLen || int64(hdr.Len) > int64(len(b)) {
		return hdr, nil, nil, false
	}
	return hdr, b[hdrLen:hdr.Len], b[min(align(int(hdr.Len)), len(b)):], true
}

// do completes the request and returns the kernel's verdict on it. Any other
// message of the answer goes to each, when it is not nil.
func (s *socket) do(each func(hdr unix.NlMsghdr, body []byte)) error {
	if err := s.send(); err != nil {
		return err
	}
	for {
		b, err := s.read()
		if err != nil {
			return err
		}
		if done, err := s.verdict(b, each); done {
			return err
		}
	}
}

func (s *socket) verdict(b []byte, each func(unix.NlMsghdr, []byte)) (done bool, err error) {
	for {
		hdr, body, rest, ok := nextMessage(b)
		if !ok {
			return false, nil
		}
		switch b = rest; {
		case hdr.Seq != s.seq: // a late answer to a request that was given up
		case hdr.Type == unix.NLMSG_ERROR:
			s.said = appendSaid(s.said[:0], hdr, body)
			return true, errnoOf(body)
		case hdr.Type == unix.RTM_DELROUTE:
			s.echo = append(s.echo[:0], body...)
		case each != nil:
			each(hdr, body)
		}
	}
}

// errnoOf reads the errno of an NLMSG_ERROR; 0 is success.
func errnoOf(body []byte) error {
	if len(body) < 4 {
		return unix.EBADMSG
	}
	if errno := -int32(native.Uint32(body)); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

// appendSaid reads the text of an NLMSG_ERROR (NLMSGERR_ATTR_MSG). With
// NETLINK_CAP_ACK the attributes stand behind the header of the request.
func appendSaid(to []byte, hdr unix.NlMsghdr, body []byte) []byte {
	if hdr.Flags&unix.NLM_F_ACK_TLVS == 0 || len(body) < 4+hdrLen {
		return to
	}
	for rest := body[4+hdrLen:]; len(rest) > 0; {
		a, next, ok := nextAttr(rest)
		if !ok {
			break
		}
		if rest = next; a.typ == unix.NLMSGERR_ATTR_MSG {
			return append(to, bytes.TrimRight(a.value, "\x00")...)
		}
	}
	return to
}

// message is one message of a dump. Its body is overwritten by the next.
type message struct {
	hdr  unix.NlMsghdr
	body []byte
}

// dump sends the request and calls each for every message of the answer, until
// it returns false: the socket is then in the middle of an answer and must be
// closed. It returns errInterrupted when the kernel says that the table
// changed meanwhile, so that the answer is not consistent.
func (s *socket) dump(ctx context.Context, each func(*message) bool) error {
	if err := s.send(); err != nil {
		return err
	}
	interrupted := false
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := s.read()
		if err != nil {
			return err
		}
		switch done, err := s.dumped(b, each, &interrupted); {
		case done && err == nil && interrupted:
			return errInterrupted
		case done:
			return err
		}
	}
}

// errInterrupted says that the table changed under a dump (NLM_F_DUMP_INTR).
var errInterrupted = errors.New("dump interrupted by a change")

func (s *socket) dumped(datagram []byte, each func(*message) bool, interrupted *bool) (done bool, err error) {
	var m message
	for b := datagram; ; {
		var ok bool
		if m.hdr, m.body, b, ok = nextMessage(b); !ok {
			return false, nil
		}
		if m.hdr.Seq != s.seq {
			continue
		}
		if m.hdr.Flags&unix.NLM_F_DUMP_INTR != 0 {
			*interrupted = true
		}
		switch {
		case m.hdr.Type == unix.NLMSG_DONE, m.hdr.Type == unix.NLMSG_ERROR:
			return true, errnoOf(m.body)
		case !each(&m):
			return true, nil
		}
	}
}
