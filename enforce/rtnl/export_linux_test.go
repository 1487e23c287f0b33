package rtnl

// LookupFlags asks with flags of the test's choice.
func LookupFlags(s *System, q Query, flags uint32) (Answer, error) {
	sock, err := s.ns.open()
	if err != nil {
		return Answer{}, err
	}
	defer sock.close()
	return lookup(sock, q, flags)
}
