// Package loader is the witness of culvert: it attaches an eBPF program to the egress of every network interface of one
// network namespace, counts every packet that leaves for a protected prefix otherwise than by its own tunnel, names who
// sent it, and drops it where it is told to. It knows interfaces, prefixes and counters, and nothing of routes.
//
// # What is seen
//
// Whatever passes the tc egress hook: all that sockets send (raw and packet sockets and SO_BINDTODEVICE included), what
// is forwarded or bridged, and what the kernel makes itself. Packets are counted as the wire will see them: a GSO buffer
// as its segments, each with its headers, a VLAN tag with its four bytes. The hook is TCX where the kernel has it (6.6)
// and a clsact filter where not; programs of others are never replaced. Ours is attached before all others, so that none
// of theirs can hide a packet from it, and hands on what it does not drop.
//
// # What is not
//
// Packet sockets with PACKET_QDISC_BYPASS, AF_XDP and pktgen hand frames to the driver below the hook; each needs
// CAP_NET_RAW.
//
// Frames that are not IP after at most eight VLAN tags are let be. A packet that is source-routed by a free address is
// judged by its last one; what a lightweight tunnel wrapped is judged by what it became. What goes to an own address by a
// device that leads back into the namespace, and what an ifb hands back to ingress, is on its way in.
//
// The link's own needs ([ExemptND], [ExemptDHCP]) are those of this host, to networks on the link or to a [Gateway], in
// shape, size and rate; the loader tells the programs which networks each link has.
//
// A later comer may put a TCX program before ours, and end the chain there (as agents do that return TC_ACT_OK) or redirect
// packets. The kernel tells nobody. So each recheck, and each notification of the interface, looks at the chain and puts
// ours first again. Packets pass unseen until then ([Options].Recheck), and [Interface].Displaced counts it. If the other
// program insists too, [Interface].Err says that packets may pass unseen. The new link is made before the old one goes:
// while both are there, a packet that is let go may be counted twice.
//
// A clsact filter goes before the BPF filters of its priority, the first that takes it. One that comes later there, or is
// of another kind and stands before it, hides packets from it when it ends the chain. That is not looked for.
//
// An ingress qdisc takes an egress filter without an error, but runs it on ingress. So no filter of ours is attached to an
// interface that has one, and [Interface].Err says so.
//
// # What stands on what
//
// A packet may leave by several interfaces in turn: a bridge and its port, a VLAN and the interface below. It belongs to the
// uppermost: if that is exempt, or the packet's own tunnel, the packet is no leak at any interface below. The programs know
// a port by its master, a VLAN's frame by its tags, and a macvlan's or ipvlan's packet by the route that the kernel noted on
// it. What the interface below sends itself has none of these, and is judged there.
//
// Where a packet is seen again below, the upper interface's sum says so ([Counter].Upper), packet by packet. That holds for
// kinds whose frames can be read below. A DSA switch's ports, HSR and batman-adv are counted at themselves alone.
//
// When an interface goes, [Witness.Counters] returns its sums once more under its index. Then they become part of one sum
// for all that are gone ([Counter].Interface 0), so that no number of interfaces fills the table.
//
// # New interfaces
//
// An interface is heard of when it is made, still down, and has its program some hundreds of microseconds later
// ([Interface].Gap): mostly before it can send. For what is quicker, and for interfaces that take no program, a netfilter
// hook after routing covers the whole namespace on kernels from 6.4 on ([LeakEarly]); it counts buffers rather than
// segments, without link headers, and does not see packet sockets. On older kernels that gap is open, and
// [Status].Early says so.
//
// # Senders
//
// Hooks on the root cgroup, which are the whole machine's and pass over other namespaces, note on each socket the process
// that made, bound, connected or last sent by it; accepted sockets and MPTCP subflows inherit it. Sockets older than the
// hooks are found by a walk over open files (5.11). What is left is guessed, and [Origin] tells which it is.
//
// # Changes without a gap
//
// A policy is built aside, as a pair of tries, and put in force by one store per family: each packet is judged by the
// old one or the new one, whole. Programs are exchanged by the kernel's own link update (or filter replace), which swaps
// one pointer. A tunnel's interface loses its program only after the policy that owns it is in force, and gets it back
// before one that does not.
//
// # Guard
//
// A guarded witness pins its links and maps in a directory (mode 0700) of a BPF file system, one for each network
// namespace. Pins keep that namespace alive. Each recheck looks at every pin, and makes again what is missing. Where
// they cannot be pinned, or only in a mount namespace that process 1 does not share, drops end with the process, and
// [Status].Unpinned says why. Pins hold when the process is killed, and the next [Open] takes them over
// with their counters. A guard whose maps have another layout, as an upgrade may bring, holds until the first Set, and its
// counters go. Guards live in memory: a reboot ends every one. [Config].Heartbeat and [Config].Remaining make
// its drops end earlier; the programs themselves judge by them.
package loader
