//go:build linux

package e2eleak

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// speech is what a talker sends: UDP, marked so that nothing is mistaken for it.
type speech struct {
	dst    string
	count  int // 0 is until it is told to end
	pause  time.Duration
	device string // SO_BINDTODEVICE
	mark   int
	packet string // hardware address: by a packet socket on the device
	choose bool   // choose the device by an ancillary message, packet by packet
	src    string // bind to this address
	rename bool   // take another name for each packet
	uid    uint32
}

const (
	port   = 5000
	secret = "secret"
)

func (s speech) args() []string {
	return []string{
		"-dst", s.dst, "-count", fmt.Sprint(s.count), "-pause", s.pause.String(),
		"-device", s.device, "-mark", fmt.Sprint(s.mark), "-packet", s.packet,
		fmt.Sprintf("-choose=%t", s.choose), fmt.Sprintf("-rename=%t", s.rename), "-src", s.src,
	}
}

// filter chooses what a talker sends to an address.
func filter(dst string) testenv.Filter {
	f := testenv.To(dst)
	f.Proto, f.Port, f.Marker = unix.IPPROTO_UDP, port, secret
	return f
}

// start starts a talker.
func (s speech) start(t testing.TB, n *testenv.NS) *testenv.Process {
	t.Helper()
	cmd := n.Command(talkerPath, s.args()...)
	cmd.Dir = "/"
	if s.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: s.uid, Gid: s.uid}
	}
	return testenv.Start(t, cmd)
}

// say runs a talker to its end.
func (s speech) say(t testing.TB, n *testenv.NS) {
	t.Helper()
	p := s.start(t, n)
	if code, err := p.Wait(patience); err != nil || code != 0 {
		t.Fatalf("talker %v: %d, %v: %s", s.args(), code, err, p.Output())
	}
}

// talk is the talker's main function.
func talk(args []string) error {
	f := flag.NewFlagSet(talker, flag.ContinueOnError)
	dst := f.String("dst", "", "")
	count := f.Int("count", 0, "")
	pause := f.Duration("pause", 0, "")
	device := f.String("device", "", "")
	mark := f.Int("mark", 0, "")
	packet := f.String("packet", "", "")
	choose := f.Bool("choose", false, "")
	rename := f.Bool("rename", false, "")
	src := f.String("src", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	to, err := netip.ParseAddr(*dst)
	if err != nil {
		return err
	}
	var send func([]byte) error
	switch {
	case *packet != "":
		send, err = packetSender(*device, *packet, to)
	case *choose:
		send, err = chooser(*device, to)
	default:
		send, err = udpSender(*device, *src, *mark, to)
	}
	if err != nil {
		return err
	}
	if *rename {
		send = renamed(send)
	}
	return repeat(send, *count, *pause)
}

// renamed sends each packet under another name of the process.
func renamed(send func([]byte) error) func([]byte) error {
	n := 0
	return func(b []byte) error {
		n++
		if err := os.WriteFile(fmt.Sprintf("/proc/self/task/%d/comm", os.Getpid()), []byte(fmt.Sprint("name", n)), 0); err != nil {
			return err
		}
		return send(b)
	}
}

// repeat sends, and at its end says how often; what is refused (no buffers: dropped;
// invalid: the interface is about to go) is passed over.
func repeat(send func([]byte) error, count int, pause time.Duration) error {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	payload := append([]byte(secret), make([]byte, 40)...)
	i := 0
	defer func() { fmt.Println("sent", i) }()
	for ; count == 0 || i < count; i++ {
		if err := send(payload); err != nil && !refused(err) {
			return err
		}
		time.Sleep(pause)
		select {
		case <-end:
			i++
			return nil
		default:
		}
	}
	return nil
}

func refused(err error) bool {
	for _, e := range []error{unix.ENOBUFS, unix.EPERM, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EINVAL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func udpSender(device, src string, mark int, to netip.Addr) (func([]byte) error, error) {
	family, sa := familyOf(to), sockaddr(netip.AddrPortFrom(to, port))
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
		return nil, err // as many libraries do unasked
	}
	if device != "" {
		if err := unix.BindToDevice(fd, device); err != nil {
			return nil, err
		}
	}
	if mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			return nil, err
		}
	}
	if from, err := netip.ParseAddr(src); err == nil {
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))); err != nil {
			return nil, err
		}
	}
	return func(b []byte) error { return unix.Sendto(fd, b, 0, sa) }, nil
}

// chooser names the device with each packet (IP_PKTINFO): no socket is bound.
func chooser(device string, to netip.Addr) (func([]byte) error, error) {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(familyOf(to), unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	oob := unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: uint32(i.Index)})
	if to.Is4() {
		oob = unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(i.Index)})
	}
	sa := sockaddr(netip.AddrPortFrom(to, port))
	return func(b []byte) error { return unix.Sendmsg(fd, b, oob, sa, 0) }, nil
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// packetSender makes packets by hand and sends them by a packet socket.
func packetSender(device, to string, dst netip.Addr) (func([]byte) error, error) {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	hw, err := net.ParseMAC(to)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	protocol, frame := uint16(0x0008), ipv4 // in the order of the network
	if dst.Is6() {
		protocol, frame = 0xdd86, ipv6
	}
	sa := &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: i.Index, Halen: 6}
	copy(sa.Addr[:], hw)
	return func(b []byte) error { return unix.Sendto(fd, frame(dst, b), 0, sa) }, nil
}

func ipv4(dst netip.Addr, payload []byte) []byte {
	size := 28 + len(payload)
	b := append([]byte{0x45, 0, byte(size >> 8), byte(size), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 10, 77, 0, 20}, dst.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = sum&0xffff + sum>>16
	sum = ^(sum&0xffff + sum>>16)
	b[10], b[11] = byte(sum>>8), byte(sum)
	udp := []byte{port >> 8, port & 0xff, port >> 8, port & 0xff, byte((size - 20) >> 8), byte(size - 20), 0, 0}
	return append(append(b, udp...), payload...)
}

// ipv6 has no checksum in the datagram: nobody here looks at it.
func ipv6(dst netip.Addr, payload []byte) []byte {
	size := 8 + len(payload)
	b := []byte{0x60, 0, 0, 0, byte(size >> 8), byte(size), unix.IPPROTO_UDP, 64}
	b = append(b, netip.MustParseAddr("fd77::20").AsSlice()...)
	b = append(b, dst.AsSlice()...)
	udp := []byte{port >> 8, port & 0xff, port >> 8, port & 0xff, byte(size >> 8), byte(size), 0, 0}
	return append(append(b, udp...), payload...)
}

// mac is the hardware address of a link.
func mac(t testing.TB, n *testenv.NS, name string) string {
	t.Helper()
	words := strings.Fields(n.IP(t, "-o link show "+name))
	for i, w := range words {
		if w == "link/ether" {
			return words[i+1]
		}
	}
	t.Fatalf("no hardware address: %v", words)
	return ""
}
