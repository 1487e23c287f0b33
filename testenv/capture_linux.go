package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// captureBuffer holds the packets that arrive while the reader is not
// running: about 80,000 small ones.
const captureBuffer = 64 << 20

// NewCapture counts IP packets on an interface of the namespace with a
// packet socket: packets that are seen by tcpdump there, before any firewall
// on the way in and after it on the way out. It counts from its return until
// [Counter.Stop].
func NewCapture(n *NS, device string, filter Filter) (*Counter, error) {
	var fd int
	err := n.Do(func() (err error) {
		fd, err = packetSocket(device, filter)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s in %s: %w", device, n, err)
	}
	s := &sniffer{file: os.NewFile(uintptr(fd), "packet:"+device), done: make(chan struct{})}
	c := &Counter{filter: filter, stop: s.stop}
	s.counter = c
	go s.run()
	return c, nil
}

// Capture is [NewCapture] for tests: it is stopped at the end of the test.
func Capture(t TB, n *NS, device string, filter Filter) *Counter {
	t.Helper()
	c, err := NewCapture(n, device, filter)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if _, err := c.Stop(); err != nil {
			t.Errorf("stop capture: %v", err)
		}
	})
	return c
}

// packetSocket opens a socket that yields IP packets without link headers.
// Its kernel filter is there before it is bound, so nothing else gets in.
func packetSocket(device string, filter Filter) (fd int, err error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return -1, err
	}
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
		return -1, fmt.Errorf("receive buffer: %w", err)
	}
	if err := attachFilter(fd, filter); err != nil {
		return -1, err
	}
	// All protocols: a socket for one does not see what is sent.
	addr := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi.Index}
	if err := unix.Bind(fd, addr); err != nil {
		return -1, fmt.Errorf("bind packet socket: %w", err)
	}
	return fd, nil
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// attachFilter lets the kernel do the cheap part of the choice, so that the
// reader is not woken by unrelated traffic.
func attachFilter(fd int, filter Filter) error {
	prog, err := bpf.Assemble(kernelFilter(filter))
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	insns := make([]unix.SockFilter, len(prog))
	for i, r := range prog {
		insns[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	fprog := &unix.SockFprog{Len: uint16(len(insns)), Filter: &insns[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, fprog); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}

// kernelFilter accepts packets of the right direction, family and
// destination. Each test jumps over the "drop" that follows it.
func kernelFilter(f Filter) []bpf.Instruction {
	drop := bpf.RetConstant{Val: 0}
	var prog []bpf.Instruction
	want := func(load []bpf.Instruction, cond bpf.JumpTest, val uint32) {
		prog = append(append(prog, load...), bpf.JumpIf{Cond: cond, Val: val, SkipTrue: 1}, drop)
	}
	kind := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtType}}
	switch f.Direction {
	case In:
		want(kind, bpf.JumpNotEqual, unix.PACKET_OUTGOING)
	case Out:
		want(kind, bpf.JumpEqual, unix.PACKET_OUTGOING)
	}
	if f.Dst.IsValid() {
		proto, at := uint32(unix.ETH_P_IP), uint32(16)
		if f.Dst.Addr().Is6() {
			proto, at = unix.ETH_P_IPV6, 24
		}
		want([]bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtProto}}, bpf.JumpEqual, proto)
		for _, w := range prefixWords(f.Dst) {
			want([]bpf.Instruction{bpf.LoadAbsolute{Off: at, Size: 4}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: w.mask}}, bpf.JumpEqual, w.value)
			at += 4
		}
	}
	return append(prog, bpf.RetConstant{Val: wholePacket})
}

// wholePacket keeps a packet's true size, which the kernel would forget if
// the filter asked for less.
const wholePacket = 1 << 18

type maskedWord struct{ mask, value uint32 }

// prefixWords splits a prefix into the 32-bit words that it constrains.
func prefixWords(p netip.Prefix) []maskedWord {
	addr := p.Masked().Addr().AsSlice()
	var out []maskedWord
	for bits := p.Bits(); bits > 0; bits -= 32 {
		mask := ^uint32(0) << (32 - min(bits, 32))
		out = append(out, maskedWord{mask, binary.BigEndian.Uint32(addr[len(out)*4:])})
	}
	return out
}

// sniffer reads a packet socket into a counter.
type sniffer struct {
	file     *os.File
	counter  *Counter
	stopping atomic.Bool
	done     chan struct{}
}

func (s *sniffer) run() {
	defer close(s.done)
	conn, err := s.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, snapLen)
	// The callback returns true to end the read, false to be called again
	// when there is more. A deadline ends the waiting.
	_ = conn.Read(func(fd uintptr) bool {
		s.drain(int(fd), buf)
		return s.stopping.Load()
	})
	_ = conn.Control(func(fd uintptr) {
		s.drain(int(fd), buf)
		s.statistics(int(fd))
	})
}

// drain counts everything in the socket's queue.
func (s *sniffer) drain(fd int, buf []byte) {
	for {
		size, _, err := unix.Recvfrom(fd, buf, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENETDOWN): // told once when the link goes down; the socket stays
		case err != nil:
			return
		default:
			s.counter.observe(buf[:min(size, len(buf))], size)
		}
	}
}

// statistics asks how many packets found the queue full.
func (s *sniffer) statistics(fd int) {
	if stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		s.counter.lost(uint64(stats.Drops))
	}
}

func (s *sniffer) stop() error {
	s.stopping.Store(true)
	if err := s.file.SetReadDeadline(time.Now()); err != nil {
		return err
	}
	<-s.done
	return s.file.Close()
}
