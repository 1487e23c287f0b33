package control

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync"
)

// crowd is the connections that are in one phase. Its zero value with most set is
// ready. It may be used by several goroutines at once.
type crowd struct {
	most int

	mu    sync.Mutex
	conns []net.Conn // oldest first
}

// enter takes a connection in, and hangs up on the oldest when there are too many.
func (c *crowd) enter(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns = append(c.conns, conn); len(c.conns) > c.most {
		_ = c.conns[0].Close()
		c.conns = slices.Delete(c.conns, 0, 1)
	}
}

func (c *crowd) leave(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = slices.DeleteFunc(c.conns, func(o net.Conn) bool { return o == conn })
}

// Requests are small. So that many large ones at once cost little memory, only a
// few may be.
const (
	smallRequest = 64 << 10
	maxLarge     = 2
)

var errManyLarge = errors.New("too many large requests at once; try again")

// metered reads a request, as long as it is small or has a place among the large.
type metered struct {
	r     io.Reader
	large chan struct{}
	n     int
	has   bool // a place
}

func (m *metered) Read(b []byte) (int, error) {
	if m.n > smallRequest && !m.has {
		select {
		case m.large <- struct{}{}:
			m.has = true
		default:
			return 0, errManyLarge
		}
	}
	n, err := m.r.Read(b)
	m.n += n
	return n, err
}

// done gives the place back.
func (m *metered) done() {
	if m.has {
		<-m.large
	}
}
