// Package e2e holds the end-to-end tests of the program: the real binary, the
// kernel's routing in network namespaces, real VPN and DHCP programs. Each
// attack has a control that shows the leak without culvert, and packets are
// counted where they arrive.
//
// Sequences of events are scripts in testdata; see TestScripts for their
// commands.
package e2e
