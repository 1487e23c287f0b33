package rtnl

import (
	"github.com/culvert-project/culvert/enforce/plan"
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
