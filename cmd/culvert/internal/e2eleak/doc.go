// Package e2eleak holds the end-to-end tests of the witness: the real binary,
// real traffic, and packets counted on both sides of the wire. What culvert says
// has leaked must be what arrived, to the packet; what it was told to stop must
// not arrive at all. Each test has traffic that does arrive, so that it can fail.
package e2eleak
