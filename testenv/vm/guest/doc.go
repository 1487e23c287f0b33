// Package guest holds the cases that run inside the machine of testenv/vm, as
// Go tests behind the build tag vm. They have the whole machine to themselves:
// the client of every network is the machine's own network namespace, culvert
// runs as its unit, and VPN programs as theirs. LAN, DHCP server, VPN server and
// target are namespaces inside the machine.
//
// Each case runs in a process of its own and begins by taking away what others
// left. It can be run alone: go run ./testenv/vm -run TestName.
package guest
