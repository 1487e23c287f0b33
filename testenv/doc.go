// Package testenv builds small networks out of Linux network namespaces and
// fills them with real programs: DHCP servers and clients, router
// advertisements, OpenVPN, attackers, senders and exact packet counters.
// It exists to answer one question about a machine with a VPN: where did the
// packets really go?
//
// # Shape
//
// Everything hangs off an [NS], a network namespace. Links ([Veth], [Bridge],
// [OpenTun]) join namespaces, services ([DHCPServer], [DHCPClient],
// [RouterAdvert], [OpenVPNServer], [OpenVPNClient]) run in them, senders
// ([Blast], [Ping], [Ask]) make traffic, and a [Counter] says exactly how many
// packets passed an interface. [NewLab] puts all of it together into a client,
// a hostile LAN, a router, a VPN server and a protected target; [NewStub] is
// the two-namespace version for tests that need no VPN program.
//
// # Tests and programs
//
// Helpers take a [TB], the part of testing.TB that they need, and stop the
// test at the first thing that goes wrong. A program that is not a test gets
// a TB from [Script], so there is one set of helpers for both. What is useful
// without either ([NewNS], [NS.Do], [NS.Command], [NS.RouteGet], …) returns
// errors.
//
// # What it leaves behind
//
// Nothing. Processes run in groups of their own that are killed at cleanup,
// and die with the test binary if that is killed. Namespaces go when their
// last user goes; their names under /run/netns are removed at cleanup, and
// [Sweep] removes those of a test binary that was killed. Daemons that write
// to /etc or /run see private copies of them ([Sandbox]).
//
// # Limits
//
// Linux only, and root only: [Require] skips a test that cannot run (and fails
// it where skipping is not acceptable). Only device types of a minimal kernel
// are used: veth, bridge and tun.
package testenv
