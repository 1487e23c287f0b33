package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What senders send: few packets, each of a known kind.
const rounds = 20

// senders are the kinds of traffic, each made by a process of its own whose name is the kind.
var kinds = map[string]func(args []string) error{
	"udp-connected":   udpConnected,
	"udp-unconnected": udpUnconnected,
	"udp-large":       udpLarge,
	"udp-gso":         udpGSO,
	"udp-options":     udpOptions,
	"tcp-client":      tcpClient,
	"mptcp-client":    mptcpClient,
	"tcp-server":      tcpServer,
	"ping-socket":     pingSocket,
	"raw-socket":      rawSocket,
	"packet-socket":   packetSender,
	"bound-device":    boundDevice,
	"pktinfo":         pktinfo,
	"many-names":      manyNames,
}

func child(kind string) {
	args := strings.Fields(os.Getenv("CULVERT_TEST_ARGS"))
	name, _ := unix.BytePtrFromString(kind)
	unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0)
	f := kinds[kind]
	switch kind {
	case "daemon":
		f = daemon
	case "nobody":
		f = nobody
	case "few":
		f = few
	case "private":
		f = private
	}
	if err := f(args); err != nil {
		fmt.Fprintln(os.Stderr, kind, args, err)
		os.Exit(1)
	}
}

func udpConnected(args []string) error {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	return repeat(func(i int) error { return second(c.Write(make([]byte, 10+i))) })
}

func udpUnconnected(args []string) error {
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	defer c.Close()
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(args[0]))
	return repeat(func(i int) error { return second(c.WriteTo(make([]byte, 10+i), to)) })
}

// udpLarge makes datagrams of three fragments.
func udpLarge(args []string) error {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	return repeat(func(i int) error { return second(c.Write(make([]byte, 4000+i))) })
}

// udpGSO hands the kernel eleven datagrams at once, the last one short.
func udpGSO(args []string) error {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	if err := setInt(c.(*net.UDPConn), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000); err != nil {
		return err
	}
	return repeat(func(int) error { return second(c.Write(make([]byte, 10*1000+333))) })
}

func setInt(c *net.UDPConn, level, name, value int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = unix.SetsockoptInt(int(fd), level, name, value) }); err != nil {
		return err
	}
	return inner
}

// udpOptions puts a hop-by-hop and a destination header before the UDP header.
func udpOptions(args []string) error {
	c, err := net.Dial("udp6", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	options := string([]byte{0, 0, 1, 4, 0, 0, 0, 0}) // PadN
	err = raw.Control(func(fd uintptr) {
		for _, name := range []int{unix.IPV6_HOPOPTS, unix.IPV6_DSTOPTS} {
			if e := unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, name, options); e != nil {
				fmt.Fprintln(os.Stderr, "option", name, e)
			}
		}
	})
	if err != nil {
		return err
	}
	return repeat(func(i int) error { return second(c.Write(make([]byte, 10+i))) })
}

func tcpClient(args []string) error {
	c, err := net.Dial("tcp", args[0])
	if err != nil {
		return err
	}
	return upload(c)
}

func mptcpClient(args []string) error {
	var d net.Dialer
	d.SetMultipathTCP(true)
	c, err := d.Dial("tcp", args[0])
	if err != nil {
		return err
	}
	return upload(c)
}

func upload(c net.Conn) error {
	defer c.Close()
	for range 64 {
		if _, err := c.Write(make([]byte, 64<<10)); err != nil {
			return err
		}
	}
	c.(*net.TCPConn).CloseWrite()
	_, err := io.Copy(io.Discard, c)
	return err
}

// tcpServer sends to whoever connects: its packets are those of an accepted socket.
func tcpServer(args []string) error {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("ready")
	l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(make([]byte, 1<<20))
	return err
}

func pingSocket(args []string) error {
	to := netip.MustParseAddrPort(args[0]).Addr()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return repeat(func(i int) error {
		echo := []byte{8, 0, 0, 0, 0, 0, 0, byte(i)}
		return unix.Sendto(fd, echo, 0, &unix.SockaddrInet4{Addr: to.As4()})
	})
}

func rawSocket(args []string) error {
	to := netip.MustParseAddrPort(args[0]).Addr()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	packet := ipv4(to, 99, make([]byte, 40))
	return repeat(func(int) error { return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.As4()}) })
}

// packetSender sends whole frames by the named device: args are the device and the frames in turn.
func packetSender(args []string) error {
	to := netip.MustParseAddrPort(args[0])
	return sendFrames("h0", repeated(frame(mac("p0"), nil, ipv4(to.Addr(), 17, udp(5000, to.Port(), 30)))))
}

func repeated(f []byte) [][]byte {
	list := make([][]byte, rounds)
	for i := range list {
		list[i] = f
	}
	return list
}

// sendFrames sends by a packet socket with the given options on.
func sendFrames(dev string, frames [][]byte, options ...int) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o, 1); err != nil {
			return err
		}
	}
	return sendBy(fd, dev, frames)
}

func sendBy(fd int, dev string, frames [][]byte) error {
	index := byName(dev).Attrs().Index
	for _, f := range frames {
		if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}); err != nil {
			return err
		}
	}
	return nil
}

// boundDevice leaves by a device that has no route to the destination, as nobody.
func boundDevice(args []string) error {
	if err := unix.Setuid(65534); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "h0"); err != nil {
		return err
	}
	to := netip.MustParseAddrPort(args[0])
	return repeat(func(i int) error {
		return unix.Sendto(fd, make([]byte, 10+i), 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	})
}

// pktinfo chooses the device of each packet by an ancillary message.
func pktinfo(args []string) error {
	to := netip.MustParseAddrPort(args[0])
	index := byName("h0").Attrs().Index
	family, oob := unix.AF_INET6, unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: uint32(index)})
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
	if to.Addr().Is4() {
		family, oob = unix.AF_INET, unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(index)})
		sa = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return repeat(func(i int) error { return unix.Sendmsg(fd, make([]byte, 10+i), oob, sa, 0) })
}

// repeat goes on where the packet was stopped, or the one before was refused.
func repeat(f func(int) error) error {
	for i := range rounds {
		err := f(i)
		if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
	}
	return nil
}

func second(_ int, err error) error { return err }

var hostAddr4, hostAddr6 = netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd09::1")

// ipv4 makes a packet from the host; the kernel of the receiver need not like it.
func ipv4(to netip.Addr, proto byte, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	b[0], b[8], b[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	from := hostAddr4.As4()
	dst := to.As4()
	copy(b[12:], from[:])
	copy(b[16:], dst[:])
	return append(b, payload...)
}

func ipv6(to netip.Addr, next, hops byte, payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0], b[6], b[7] = 0x60, next, hops
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	from, dst := hostAddr6.As16(), to.As16()
	copy(b[8:], from[:])
	copy(b[24:], dst[:])
	return append(b, payload...)
}

func udp(from, to uint16, size int) []byte {
	b := make([]byte, 8+size)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	return b
}

// frame wraps a packet, with tags of the given types, outermost first.
func frame(to net.HardwareAddr, tags []uint16, packet []byte) []byte {
	b := append(append([]byte{}, to...), mac("h0")...)
	for _, tag := range tags {
		b = binary.BigEndian.AppendUint16(b, tag)
		b = append(b, 0, 5)
	}
	if packet[0]>>4 == 4 {
		b = append(b, 8, 0)
	} else {
		b = append(b, 0x86, 0xdd)
	}
	return append(b, packet...)
}

// daemon is a witness that drops, in a process that will be killed: args are the folder of pins and what to protect.
func daemon(args []string) error {
	w, err := Open(Options{PinDir: args[0]})
	if err != nil {
		return err
	}
	if err := w.Set(Config{Prefixes: []Prefix{{Prefix: netip.MustParsePrefix(args[1]), ID: 1}}, Action: Drop}); err != nil {
		return err
	}
	fmt.Println("ready")
	time.Sleep(time.Minute)
	return w.Close()
}

// nobody tries to open a witness without privileges.
func nobody(args []string) error {
	if err := unix.Setuid(65534); err != nil {
		return err
	}
	w, err := Open(Options{PinDir: args[0]})
	if err == nil {
		w.Close()
		return errors.New("opened")
	}
	if !errors.Is(err, ErrPrivilege) || !strings.Contains(err.Error(), "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN") {
		return fmt.Errorf("unclear: %w", err)
	}
	return nil
}

// few opens a witness with the few capabilities that it was given.
func few(args []string) error {
	w, err := Open(Options{PinDir: args[0]})
	if err != nil {
		return err
	}
	defer w.Close()
	drop := Config{Prefixes: []Prefix{{Prefix: netip.MustParsePrefix("10.9.0.0/24")}}, Action: Drop}
	if err := w.Set(drop); err != nil {
		return fmt.Errorf("drop: %w", err)
	}
	st, err := w.Status()
	if err != nil || st.Guarded != "" {
		return fmt.Errorf("guarded without the right to mount: %+v, %w", st, err)
	}
	drop.Guard = true
	if err := w.Set(drop); err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	if st, err = w.Status(); err != nil || st.Guarded != "" || !strings.Contains(st.Unpinned, "CAP_SYS_ADMIN") {
		return fmt.Errorf("guard: unclear: %+v, %w", st, err)
	}
	return nil
}

// private guards in a mount namespace of its own, where its folder is mounted on first.
func private(args []string) error {
	w, err := Open(Options{PinDir: args[0]})
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Set(Config{Prefixes: []Prefix{{Prefix: netip.MustParsePrefix("10.9.0.0/24")}}, Guard: true}); err != nil {
		return err
	}
	st, err := w.Status()
	if err != nil || st.Guarded == "" || !strings.Contains(st.Unpinned, "private mount namespace") {
		return fmt.Errorf("unclear: %+v, %w", st, err)
	}
	return w.Set(Config{})
}
