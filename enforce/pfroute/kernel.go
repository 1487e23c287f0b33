package pfroute

import (
	"io"
	"time"
)

// kernel is what only macOS can do. It decides nothing.
type kernel interface {
	routes() ([]byte, error)     // the routing information base, both families
	interfaces() ([]byte, error) // the interface list
	open() (socket, error)       // a PF_ROUTE socket that hears everything
	process(pid uint32) string   // its name, or ""
	uptime() (time.Duration, error)
	boot() (string, error) // an identity of this boot
}

// socket reads and writes one message at a time.
type socket interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
}
