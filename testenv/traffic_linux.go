package testenv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Blast is a burst of UDP datagrams. Dst and Count are required.
type Blast struct {
	Dst    netip.AddrPort
	Count  int    // how many datagrams to try
	Rate   int    // datagrams per second; 0 is as fast as possible
	Size   int    // payload bytes; 0 is 64. Never less than Marker and a number of 8 bytes
	Marker string // start of the payload; the datagram's number (big endian) follows
	Src    netip.Addr
	Device string // SO_BINDTODEVICE
	TOS    uint8  // type of service or traffic class
	// Connected sends on one connected socket, whose route the kernel caches,
	// instead of looking up a route for each datagram.
	Connected bool
}

// Sent is what became of a [Blast]: Packets were taken by the kernel, the
// others were refused.
type Sent struct {
	Packets int
	Refused map[syscall.Errno]int
}

// String is one line for messages.
func (s Sent) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d packets", s.Packets)
	for errno, n := range s.Refused {
		fmt.Fprintf(&b, ", %d refused: %v", n, errno)
	}
	return b.String()
}

// Blast sends the burst from the namespace and returns when it is sent or
// ctx is done, which is not an error. Datagrams that the kernel refuses (no
// route, filtered, no buffers) are counted and not tried again.
func (n *NS) Blast(ctx context.Context, b Blast) (Sent, error) {
	var sent Sent
	err := n.Do(func() error {
		fd, err := b.socket()
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		sent, err = b.send(ctx, fd)
		return err
	})
	if err != nil {
		return sent, fmt.Errorf("blast %s from %s: %w", b.Dst, n, err)
	}
	return sent, nil
}

// Send is [NS.Blast] for tests, with no context: a burst that cannot be sent
// at all stops the test, a datagram refused does not.
func (n *NS) Send(t TB, b Blast) Sent {
	t.Helper()
	sent, err := n.Blast(context.Background(), b)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return sent
}

func (b Blast) socket() (fd int, err error) {
	family := unix.AF_INET
	if b.Dst.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := b.setUp(fd); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (b Blast) setUp(fd int) error {
	if b.Device != "" {
		if err := unix.BindToDevice(fd, b.Device); err != nil {
			return fmt.Errorf("bind to %s: %w", b.Device, err)
		}
	}
	if b.TOS != 0 {
		if err := setTOS(fd, b.Dst.Addr(), b.TOS); err != nil {
			return fmt.Errorf("type of service: %w", err)
		}
	}
	if b.Src.IsValid() {
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(b.Src, 0))); err != nil {
			return fmt.Errorf("bind to %s: %w", b.Src, err)
		}
	}
	if b.Connected {
		if err := unix.Connect(fd, sockaddr(b.Dst)); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
	}
	return nil
}

func setTOS(fd int, dst netip.Addr, tos uint8) error {
	if dst.Is6() {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(tos))
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, int(tos))
}

func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
}

func (b Blast) send(ctx context.Context, fd int) (Sent, error) {
	sent := Sent{Refused: map[syscall.Errno]int{}}
	var to unix.Sockaddr
	if !b.Connected {
		to = sockaddr(b.Dst)
	}
	payload, number := b.payload()
	start := time.Now()
	for i := range b.Count {
		if b.Rate > 0 {
			sleepUntil(start.Add(time.Duration(i) * time.Second / time.Duration(b.Rate)))
		}
		if i%16 == 0 && ctx.Err() != nil {
			break
		}
		binary.BigEndian.PutUint64(number, uint64(i))
		err := sendOne(fd, payload, to)
		var errno syscall.Errno
		switch {
		case err == nil:
			sent.Packets++
		case errors.As(err, &errno):
			sent.Refused[errno]++
		default:
			return sent, err
		}
	}
	return sent, nil
}

func sendOne(fd int, payload []byte, to unix.Sockaddr) error {
	if to == nil {
		_, err := unix.Write(fd, payload)
		return err
	}
	return unix.Sendto(fd, payload, 0, to)
}

// payload is the datagram and the place of its number.
func (b Blast) payload() (all, number []byte) {
	size := b.Size
	if size == 0 {
		size = 64
	}
	all = make([]byte, max(size, len(b.Marker)+8))
	copy(all, b.Marker)
	return all, all[len(b.Marker):]
}

// sleepUntil sleeps, but not for times too short to be worth it: then the
// sender catches up in little bursts.
func sleepUntil(at time.Time) {
	if d := time.Until(at); d > 50*time.Microsecond {
		time.Sleep(d)
	}
}

// Ping sends count ICMP echo requests, one at a time, and returns how many
// were answered. Each is given timeout to be answered. It needs no ping
// program. A request that the kernel refuses to send counts as unanswered; if
// all are refused, the last refusal is the error.
func (n *NS) Ping(dst netip.Addr, count int, timeout time.Duration) (answered int, err error) {
	var refused error
	err = n.Do(func() error {
		p, err := newPinger(dst)
		if err != nil {
			return err
		}
		defer func() { _ = p.conn.Close() }()
		for seq := range count {
			ok, err := p.once(seq, timeout)
			if ok {
				answered++
			}
			refused = errors.Join(err) // nil clears it
		}
		return nil
	})
	if err == nil && answered == 0 {
		err = refused
	}
	if err != nil {
		return answered, fmt.Errorf("ping %s from %s: %w", dst, n, err)
	}
	return answered, nil
}

type pinger struct {
	conn           *icmp.PacketConn
	dst            netip.Addr
	request, reply icmp.Type
	protocol       int
	id             int
}

func newPinger(dst netip.Addr) (*pinger, error) {
	p := &pinger{dst: dst, request: ipv4.ICMPTypeEcho, reply: ipv4.ICMPTypeEchoReply, protocol: unix.IPPROTO_ICMP}
	network, any := "ip4:icmp", "0.0.0.0"
	if dst.Is6() {
		p.request, p.reply, p.protocol = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, unix.IPPROTO_ICMPV6
		network, any = "ip6:ipv6-icmp", "::"
	}
	conn, err := icmp.ListenPacket(network, any)
	if err != nil {
		return nil, err
	}
	p.conn, p.id = conn, int(time.Now().UnixNano()&0xffff)
	return p, nil
}

// once sends one request; the error is that of sending.
func (p *pinger) once(seq int, timeout time.Duration) (bool, error) {
	msg := icmp.Message{Type: p.request, Body: &icmp.Echo{ID: p.id, Seq: seq & 0xffff, Data: []byte("testenv")}}
	b, err := msg.Marshal(nil) // the kernel adds the ICMPv6 checksum
	if err != nil {
		return false, err
	}
	if err := p.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return false, err
	}
	if _, err := p.conn.WriteTo(b, &net.IPAddr{IP: p.dst.AsSlice(), Zone: p.dst.Zone()}); err != nil {
		return false, err
	}
	return p.await(seq), nil
}

func (p *pinger) await(seq int) bool {
	buf := make([]byte, 1500)
	for {
		size, _, err := p.conn.ReadFrom(buf)
		if err != nil {
			return false
		}
		msg, err := icmp.ParseMessage(p.protocol, buf[:size])
		if err != nil || msg.Type != p.reply {
			continue
		}
		if echo, ok := msg.Body.(*icmp.Echo); ok && echo.ID == p.id && echo.Seq == seq&0xffff {
			return true
		}
	}
}

// Serve answers UDP datagrams and TCP connections on an address of the
// namespace until the end of the test: with name, a line end and what was
// sent. [NS.Ask] thus learns who answers for an address. The address may be
// given to the namespace later than this call; a wildcard address ("0.0.0.0")
// serves all of its family.
func Serve(t TB, n *NS, at netip.AddrPort, name string) {
	t.Helper()
	err := n.Do(func() error {
		lc := net.ListenConfig{Control: serverOptions}
		family := "4" // named, or a wildcard would serve both
		if at.Addr().Is6() {
			family = "6"
		}
		tcp, err := lc.Listen(context.Background(), "tcp"+family, at.String())
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = tcp.Close() })
		udp, err := lc.ListenPacket(context.Background(), "udp"+family, at.String())
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = udp.Close() })
		go serveTCP(tcp, name+"\n")
		go serveUDP(udp.(*net.UDPConn), name+"\n")
		return nil
	})
	if err != nil {
		t.Fatalf("serve %s in %s: %v", at, n, err)
	}
}

// serverOptions lets a socket listen on an address that is not there yet and
// learn the address that each datagram was sent to.
func serverOptions(network, _ string, conn syscall.RawConn) error {
	level, free, info := unix.IPPROTO_IP, unix.IP_FREEBIND, unix.IP_PKTINFO
	if strings.HasSuffix(network, "6") {
		level, free, info = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, unix.IPV6_RECVPKTINFO
	}
	var errs [2]error
	err := conn.Control(func(fd uintptr) {
		errs[0] = unix.SetsockoptInt(int(fd), level, free, 1)
		errs[1] = unix.SetsockoptInt(int(fd), level, info, 1)
	})
	return errors.Join(err, errs[0], errs[1])
}

func serveTCP(l net.Listener, greeting string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go echoTCP(conn, greeting)
	}
}

// echoTCP repeats every read, each time after the greeting.
func echoTCP(conn net.Conn, greeting string) {
	defer func() { _ = conn.Close() }()
	buf := make([]byte, 1<<16)
	for {
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		size, err := conn.Read(buf)
		if err != nil {
			return
		}
		if _, err := conn.Write(append([]byte(greeting), buf[:size]...)); err != nil {
			return
		}
	}
}

// serveUDP answers from the address that was asked, which need not be the one
// that the kernel would choose.
func serveUDP(conn *net.UDPConn, greeting string) {
	buf, control := make([]byte, 1<<16), make([]byte, 128)
	for {
		size, controlSize, _, from, err := conn.ReadMsgUDPAddrPort(buf, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			answer := append([]byte(greeting), buf[:size]...)
			_, _, _ = conn.WriteMsgUDPAddrPort(answer, replyFrom(control[:controlSize]), from)
		}
	}
}

// replyFrom makes the control message that sends from the address where the
// packet with the given control messages arrived; the interface is left open.
func replyFrom(control []byte) []byte {
	var in4 ipv4.ControlMessage
	if in4.Parse(control) == nil && in4.Dst != nil {
		return (&ipv4.ControlMessage{Src: in4.Dst}).Marshal()
	}
	var in6 ipv6.ControlMessage
	if in6.Parse(control) == nil && in6.Dst != nil {
		return (&ipv6.ControlMessage{Src: in6.Dst}).Marshal()
	}
	return nil
}

// Dial connects from the namespace. The address must be numeric.
func (n *NS) Dial(network string, to netip.AddrPort, timeout time.Duration) (net.Conn, error) {
	var conn net.Conn
	err := n.Do(func() (err error) {
		d := net.Dialer{Timeout: timeout}
		conn, err = d.Dial(network, to.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial from %s: %w", n, err)
	}
	return conn, nil
}

// Ask sends a question over network ("tcp" or "udp") to an address where
// [Serve] may be listening, and returns the name of who answered within
// timeout.
func (n *NS) Ask(network string, to netip.AddrPort, timeout time.Duration) (string, error) {
	conn, err := n.Dial(network, to, timeout)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("who are you?")); err != nil {
		return "", fmt.Errorf("ask from %s: %w", n, err)
	}
	buf := make([]byte, 1500)
	size, err := conn.Read(buf)
	if err != nil {
		return "", fmt.Errorf("ask from %s: %w", n, err)
	}
	name, _, _ := strings.Cut(string(buf[:size]), "\n")
	return name, nil
}
