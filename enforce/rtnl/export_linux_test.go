package rtnl

import (
	"errors"
	"iter"
	"os"
	"sync/atomic"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// LookupFlags asks with flags of the test's choice.
func LookupFlags(s *System, q Query, flags uint32) (Answer, error) {
	sock, err := s.ns.open()
	if err != nil {
		return Answer{}, err
	}
	defer sock.close()
	return lookup(sock, q, flags)
}

// DeleteOnce sends the one delete that names a route, and puts nothing back.
func DeleteOnce(s *System, r *plan.Route) error {
	s.changes.begin(unix.RTM_DELROUTE, unix.NLM_F_ACK)
	s.changes.out = appendDelete(s.changes.out, []byte(r.Raw), r)
	return s.changes.do(nil)
}

// SetBuffer sets how much the next Watch can hear before it is served.
func SetBuffer(s *System, bytes int) { s.buffer = bytes }

// Mute can make a System's kernel take every request and answer none: its sockets are
// then connected to another's port, where nobody reads.
type Mute struct {
	sys   *System
	on    atomic.Bool
	raw   func() (*socket, error)
	real  *socket
	peers []*socket // mu of the System guards them
}

// NewMute prepares that, while nothing uses the System: each answer may take as long as
// patience from now on.
func NewMute(s *System, patience time.Duration) *Mute {
	ns := s.ns
	m := &Mute{sys: s, real: s.changes, raw: ns.socket}
	ns.patience, s.changes.patience = patience, patience
	dial := ns.dial
	ns.socket = m.socket
	ns.dial = func() (*netlink.Conn, error) {
		if !m.on.Load() {
			return dial()
		}
		s, err := m.socket()
		if err != nil {
			return nil, err
		}
		return netlink.NewConn(muteConn{os.NewFile(uintptr(s.fd), "netlink")}, s.port), nil
	}
	return m
}

func (m *Mute) socket() (*socket, error) {
	s, err := m.raw()
	if err != nil || !m.on.Load() {
		return s, err
	}
	peer, err := m.raw()
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	m.sys.mu.Lock()
	defer m.sys.mu.Unlock()
	m.peers = append(m.peers, peer)
	return s, unix.Connect(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: peer.port})
}

// Begin is when the kernel falls silent. A watch that runs goes on with what it has.
func (m *Mute) Begin() error {
	m.on.Store(true)
	s, err := m.sys.ns.open()
	m.sys.mu.Lock()
	defer m.sys.mu.Unlock()
	m.sys.changes = s
	return err
}

// Changes is how many changes were asked for since it was last asked.
func (m *Mute) Changes() (n int) {
	m.sys.mu.Lock()
	defer m.sys.mu.Unlock()
	for ; len(m.peers) > 0; n++ { // the first one's is the socket of changes
		if _, err := m.peers[0].receive(); err != nil {
			break
		}
	}
	return n
}

// End is when it answers again.
func (m *Mute) End() {
	m.on.Store(false)
	m.sys.mu.Lock()
	defer m.sys.mu.Unlock()
	_ = m.sys.changes.close()
	m.sys.changes = m.real
	for _, p := range m.peers {
		_ = p.close()
	}
}

// muteConn is such a socket for the decoder's connections.
type muteConn struct{ *os.File }

func (c muteConn) Send(m netlink.Message) error {
	b, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	_, err = c.Write(b)
	return err
}

func (c muteConn) SendMessages(all []netlink.Message) error {
	for _, m := range all {
		if err := c.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (c muteConn) Receive() ([]netlink.Message, error) {
	_, err := c.Read(make([]byte, inputSize))
	return nil, err
}

func (c muteConn) ReceiveIter() iter.Seq2[netlink.Message, error] {
	return func(yield func(netlink.Message, error) bool) {
		_, err := c.Receive()
		yield(netlink.Message{}, err)
	}
}
