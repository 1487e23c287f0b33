/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Shared by every program: what is decided by, counted and told. The loader's Go types are generated from here. */
#ifndef CULVERT_H
#define CULVERT_H

#include "headers/bpf.h"
#include "headers/kernel.h"
#include "headers/net.h"

/* ---- constants ---- */

#define MAX_OWNERS 4	/* tunnels that may share a prefix */
#define MAX_GATES 8	/* transports that may share a server address */
#define ANY_PROTO 255	/* of a gate: whatever goes to the server is the transport */
#define MAX_OPTIONS 40	/* IPv4 options: 40 bytes, and a no-op takes one */
#define MAX_HEADERS 8	/* IPv6 extension headers */
#define MAX_COUNTERS 16384
#define MAX_SENDERS 4096
#define MAX_DEVICES 16384
#define MAX_VLANS 4096
#define MAX_ABOVE 3	/* a device, its master, and that one's: a bond in a bridge */
#define MAX_VLAN_TAGS 2 /* tags within the packet that are followed to a VLAN's device; one more may be beside it */
#define MAX_FRAGMENTS 1024
#define TRAIN 8		/* first fragments that a socket is known by; a power of two */
#define MAX_SUBNETS 65536
#define MAX_PACES 4096
#define IF_NAME 16	/* of a device, with its end */
#define RING_BYTES (1 << 18)
#define SAMPLE_WINDOW 100000000ULL /* 100 ms */

/* What the longest prefix says of a destination. */
enum class {
	CLASS_PROTECTED, /* must leave through its tunnel */
	CLASS_EXCLUDED,  /* may leave anywhere */
	CLASS_IGNORED,   /* none of our business */
	CLASS_SERVER,    /* excluded for the tunnel's own transport, protected from all else */
	CLASS_GATEWAY,   /* the next hop to the server: the link's own needs may pass, nothing else */
};

enum action {
	ACTION_COUNT,
	ACTION_DROP,
};

/* Why a packet was counted. Those from REASON_EXEMPT on are no leaks and are never dropped. */
enum reason {
	REASON_NONE,
	REASON_PROTECTED, /* a protected destination, outside its tunnel */
	REASON_SERVER,	  /* the server's address, but not the tunnel's transport */
	REASON_EARLY,	  /* a protected destination by a device that has no program (yet) */
	REASON_OVERFLOW,  /* a leak that found the counters full */
	REASON_GATEWAY,	  /* the gateway's address, but none of the link's own needs */
	REASON_SENDER,	  /* to where the tunnel's transport goes, but from another sender */
	REASON_EXEMPT = 16,
	REASON_EXEMPT_ND = REASON_EXEMPT, /* this host's neighbour discovery with one on the link */
	REASON_EXEMPT_DHCP,		  /* this host's DHCP or DHCPv6 with one on the link */
	REASON_EXEMPT_BROADCAST,	  /* the broadcast address of a network on the link */
	REASON_EXEMPT_DEVICE,		  /* a device that the operator excluded */
	REASON_EXEMPT_FRAGMENT,		  /* a later fragment to the server, its first one lost on the way to us */
};

/* What the device's networks say of an address. */
enum place {
	PLACE_LINK,   /* of a network on the link */
	PLACE_OWN,    /* this host's own; of a device: it leads back into this namespace */
	PLACE_INWARD, /* behind a device that hands what it got from ingress back to ingress */
};

/* How the sender is known. */
enum origin {
	ORIGIN_UNOWNED,	  /* made by the kernel, or the socket is gone */
	ORIGIN_SOCKET,	  /* noted on the socket by a cgroup hook */
	ORIGIN_SEED,	  /* noted on a socket older than the hooks: one holder of its file */
	ORIGIN_TASK,	  /* the running task, which shares the socket's uid: likely */
	ORIGIN_PACKET,	  /* the running task, sending by a packet socket */
	ORIGIN_FORWARDED, /* not of this host: see ingress and source address */
};

/* ---- structs ---- */

struct prefix4 {
	__u32 bits;
	__be32 addr;
};

struct prefix6 {
	__u32 bits;
	__be32 addr[4];
};

/* A device's network, the longest of which counts. This host's own addresses are there once, of no device. */
struct subnet_key {
	__u32 bits; /* from ifindex on */
	__u32 ifindex; /* 0: an own address */
	__u32 family; /* 4, 6; 0: what the device is like as a whole */
	__be32 addr[4];
};

struct subnet {
	__u32 place;
	__be32 hosts; /* IPv4: the bits that are all ones in the broadcast address; 0: there is none */
};

struct pace_key {
	__u32 ifindex;
	__u32 reason;
};

struct pace {
	__u64 window; /* began at */
	__u64 used;
};

/* Who sends a tunnel's transport. What this host only forwards fits the first alone. */
enum from {
	FROM_ANY,
	FROM_HOST,
	FROM_KERNEL, /* the kernel: no process by a socket of its own */
	FROM_UID,    /* a socket of one user */
	FROM_MARK,   /* packets with one mark */
};

struct gate {
	__u16 port; /* 0: any */
	__u8 proto;
	__u8 from;
	__u32 who; /* the user id, or the mark */
};

struct rule {
	__u32 id;
	__u8 class;
	__u8 action;
	__u8 owners;
	__u8 gates;
	__u32 exempt; /* groups of devices by which its packets are no leaks */
	__u32 owner[MAX_OWNERS]; /* tunnels, by ifindex */
	struct gate gate[MAX_GATES];
	char tunnel[IF_NAME]; /* its name, by which it may be back under another ifindex; empty: none */
	char kind[IF_NAME]; /* of that interface, as rtnetlink says; empty: none, or not known */
	__u16 frames; /* its ARPHRD type; with an empty kind 0 is not known */
	__u16 narrow; /* what its gates ask of the sender: a bit for each from */
};

/* What the programs know of a device. */
struct device {
	__u32 groups; /* the exempt groups that it is in */
	__u32 master; /* whose port it is, by ifindex; 0: none that is watched */
	__u32 flags;
};

#define DEVICE_UPPER 1	 /* what leaves by it leaves once more by another one that is watched */
#define DEVICE_CONDUIT 2 /* a switch sends by it: frames that cannot be read here were judged at the ports */

/* A VLAN's device, by the device below and the tag. */
struct vlan_key {
	__u32 ifindex;
	__be16 proto;
	__u16 vid;
};

struct counter_key {
	__u32 ifindex; /* 0: all that are gone, or none */
	__u32 prefix;
	__u32 reason;
	__u32 upper; /* its device was one when the packet passed */
};

struct counter {
	__u64 packets; /* as the wire sees them: segments, not buffers */
	__u64 bytes;
	__u64 dropped; /* packets among them */
};

/* What a sender is told apart by: nothing that it can change at will, as its name is. */
struct sender_key {
	__u32 ifindex;
	__u32 prefix;
	__u32 ingress;
	__u32 bound; /* the socket's SO_BINDTODEVICE */
	__u32 pid;
	__u32 uid;
	__u8 reason;
	__u8 origin;
	__u8 family;
	__u8 upper; /* as in counter_key */
	__be32 source[4]; /* forwarded packets only */
};

struct sender {
	__u64 packets;
	__u64 bytes;
	__u64 dropped;
	__u64 first; /* boot time, ns */
	__u64 last;
	__u64 cgroup;
	__be32 to[4]; /* the latest destination, and how it was asked for */
	__u32 mark;
	__u16 port;
	__u8 proto;
	__u8 tos;
	char comm[16]; /* the latest name */
};

struct sample {
	__u64 time; /* boot time, ns */
	__u64 cookie;
	__u64 cgroup;
	__u32 ifindex;
	__u32 ingress;
	__u32 bound;
	__u32 prefix;
	__u32 pid;
	__u32 uid;
	__u32 mark;
	__u32 bytes;
	__u32 segments;
	__u16 sport;
	__u16 dport;
	__be32 source[4];
	__be32 dest[4];
	char comm[16];
	__u8 family;
	__u8 proto;
	__u8 tos;
	__u8 reason;
	__u8 origin;
	__u8 dropped;
	__u8 pad[2];
};

struct owner {
	__u32 pid;
	__u32 uid;
	__u32 origin;
	char comm[16];
};

struct fragment {
	__be32 source[4];
	__be32 dest[4];
	__be32 id;
	__u32 proto;
};

/* The latest first fragments of one socket. */
struct train {
	__u32 next;
	struct {
		struct fragment id;
		__u32 why; /* a reason */
	} first[TRAIN];
};

/* Drops end when the first of these has passed; in ns, 0 is never. Each is one aligned word. */
struct settings {
	__u64 heard; /* monotonic time: stands still while the host sleeps, like the process that renews it */
	__u64 until; /* boot time: goes on in sleep */
};

struct meter {
	__u64 window; /* began at */
	__u64 used;
	__u64 firsts; /* of senders, beyond those */
	__u64 suppressed; /* samples held back by the rate limit */
	__u64 lost;	  /* samples that found the ring full */
};

/* Where the IP header of a packet is. */
struct spot {
	__u32 net; /* offset, behind a link header that we understand */
	bool ether;
	bool group; /* sent to many by the frame's address */
};

/* What the headers say of one packet. IPv4 addresses are in the first word. */
struct packet {
	struct spot at;
	__u32 upper; /* offset of the upper-layer header, from the IP header */
	__be32 source[4];
	__be32 dest[4];
	__be32 id; /* of the datagram that it is a fragment of */
	__u16 sport;
	__u16 dport;
	__u8 family; /* 4, 6 */
	__u8 proto;
	__u8 tos;
	__u8 hops;
	__u16 frag; /* as in an IPv4 header: offset and IP_MF */
	__u16 size; /* IPv6: what the header says that follows it */
	__u8 whole; /* protocol of the datagram that it is a fragment of, as each fragment has it */
	bool sealed; /* an authentication header was passed over */
	bool routed; /* final is where it goes in the end, by way of dest */
	__be32 final[4];
};

/* ---- maps ---- */

struct trie4 {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct prefix4));
	__uint(value_size, sizeof(struct rule));
};

struct trie6 {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct prefix6));
	__uint(value_size, sizeof(struct rule));
};

/* A policy is built aside and takes effect by one store: a packet sees the old one or the new one, whole. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct trie4);
} policies4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct trie6);
} policies6 SEC(".maps");

/* Devices whose packets a tc program sees, or need not see. The early program minds the others. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_DEVICES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_VLANS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct vlan_key);
	__type(value, __u32);
} vlans SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_COUNTERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct counter_key);
	__type(value, struct counter);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_SENDERS);
	__type(key, struct sender_key);
	__type(value, struct sender);
} senders SEC(".maps");

/* Written by the cgroup hooks and the seed; inherited by accepted sockets. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct owner);
} owners SEC(".maps");

/* First fragments to a server, and why each was no transport of the tunnel, if so: later fragments carry no ports. No sender can
 * push out another's: each socket has its own store, forwarded packets share one, and packets of no socket share another. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct train);
} trains SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_FRAGMENTS);
	__type(key, struct fragment);
	__type(value, __u8);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_FRAGMENTS);
	__type(key, struct fragment);
	__type(value, __u8);
} forwarded SEC(".maps");

/* The networks on each device's link, and what leads back into this namespace. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_SUBNETS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct subnet_key);
	__type(value, struct subnet);
} subnets SEC(".maps");

/* How many packets of a kind were exempt lately on a device. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_PACES);
	__type(key, struct pace_key);
	__type(value, struct pace);
} paces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} samples SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct meter);
} meters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

/* Samples that one CPU may send in a window. Set before loading. */
const volatile __u32 sample_burst = 64;

/* ---- helpers ---- */

/* rule4 and rule6 find the longest prefix of the policy in force that holds dest. */
static __always_inline struct rule *rule4(const __be32 *dest)
{
	struct prefix4 key = {.bits = 32, .addr = *dest};
	__u32 zero = 0;
	void *trie = bpf_map_lookup_elem(&policies4, &zero);

	return trie ? bpf_map_lookup_elem(trie, &key) : NULL;
}

static __always_inline struct rule *rule6(const __be32 *dest)
{
	struct prefix6 key = {.bits = 128, .addr = {dest[0], dest[1], dest[2], dest[3]}};
	__u32 zero = 0;
	void *trie = bpf_map_lookup_elem(&policies6, &zero);

	return trie ? bpf_map_lookup_elem(trie, &key) : NULL;
}

static __always_inline bool owned(const struct rule *r, __u32 ifindex)
{
	for (int i = 0; i < MAX_OWNERS; i++)
		if (i < r->owners && r->owner[i] == ifindex)
			return true;
	return false;
}

/* subnet_of finds the network that holds the destination, of those on the device. */
static __always_inline struct subnet *subnet_of(__u32 ifindex, const struct packet *p)
{
	struct subnet_key key = {
		.bits = 8 * (sizeof(key) - sizeof(key.bits)), .ifindex = ifindex, .family = p->family,
		.addr = {p->dest[0], p->dest[1], p->dest[2], p->dest[3]},
	};

	return bpf_map_lookup_elem(&subnets, &key);
}

/* of_kernel is true of a packet of one of the kernel's own sockets. One that a process has closed is no such. */
static __always_inline bool of_kernel(const struct sk_buff *k)
{
	struct socket *socket = NULL;
	struct file *file = NULL;
	struct sock *sk = NULL;

	peek(&sk, &k->sk);
	peek(&socket, &sk->sk_socket);
	return sk && socket && !peek(&file, &socket->file) && !file;
}

/* paced lets so many packets pass in a window, those of each device and reason apart. CPUs that meet may let a few more. */
static __always_inline bool paced(__u32 ifindex, enum reason why)
{
	__u64 now = bpf_ktime_get_boot_ns(), window = why == REASON_EXEMPT_ND ? ND_WINDOW : DHCP_WINDOW;
	struct pace_key key = {.ifindex = ifindex, .reason = why};
	struct pace *p = bpf_map_lookup_elem(&paces, &key);
	struct pace none = {.window = now};

	if (!p) {
		bpf_map_update_elem(&paces, &key, &none, BPF_NOEXIST);
		p = bpf_map_lookup_elem(&paces, &key);
	}
	if (!p)
		return false;
	if (now - p->window >= window) {
		p->window = now;
		p->used = 0;
	}
	if (p->used >= (why == REASON_EXEMPT_ND ? ND_BURST : DHCP_BURST))
		return false;
	__sync_fetch_and_add(&p->used, 1);
	return true;
}

/* same_text compares two texts of an interface's, both filled up with zeros: as two words, for the verifier follows every way
 * out of a loop. */
static __always_inline bool same_text(const char *a, const char *b)
{
	__u64 x[2], y[2];

	_Static_assert(sizeof(x) == IF_NAME, "a text is two words");
	__builtin_memcpy(x, a, sizeof(x));
	__builtin_memcpy(y, b, sizeof(y));
	return !((x[0] ^ y[0]) | (x[1] ^ y[1]));
}

/* same_type is true of an interface of the tunnel's type: an interface of any type may have taken its name. */
static __always_inline bool same_type(const struct rule *r, const struct net_device *dev)
{
	const struct rtnl_link_ops *ops = NULL;
	char kind[IF_NAME] = {};
	const char *text = NULL;
	__u16 frames = 0;

	if (!r->kind[0] && !r->frames)
		return true;
	peek(&ops, &dev->rtnl_link_ops);
	if (ops && !peek(&text, &ops->kind))
		bpf_probe_read_kernel_str(kind, sizeof(kind), text);
	return !peek(&frames, &dev->type) && frames == r->frames && same_text(kind, r->kind);
}

/* returned is true of a tunnel that went and is back by its name: the loader hears of both a moment later than packets
 * may come. */
static __always_inline bool returned(const struct rule *r, const struct net_device *dev)
{
	char name[IF_NAME] = {};

	/* As a text: after a renaming the rest of a longer name stands behind the end. */
	if (!r->tunnel[0] || bpf_probe_read_kernel_str(name, sizeof(name), dev->name) < 0)
		return false;
	return same_text(name, r->tunnel) && same_type(r, dev);
}

/* to_many is true of multicast and of the limited broadcast, which are never leaks. */
static __always_inline bool to_many(const struct packet *p)
{
	if (p->family == 6)
		return (p->dest[0] & htonl(0xff000000)) == htonl(0xff000000);
	return (p->dest[0] & htonl(0xf0000000)) == htonl(0xe0000000) || p->dest[0] == 0xffffffff;
}

/* drops says whether r drops now: its action, while no deadline has passed. */
static __always_inline bool drops(const struct rule *r)
{
	__u32 zero = 0;
	struct settings *s;

	if (r->action != ACTION_DROP)
		return false;
	s = bpf_map_lookup_elem(&settings, &zero);
	if (!s)
		return true; /* never */
	return (!s->heard || bpf_ktime_get_ns() < s->heard) && (!s->until || bpf_ktime_get_boot_ns() < s->until);
}

/* counter_of makes the counter when it is missing, and falls back to one of the overflow's when there is no room. */
static __always_inline struct counter *counter_of(struct counter_key *key)
{
	struct counter none = {};
	struct counter *c = bpf_map_lookup_elem(&counters, key);

	if (c)
		return c;
	bpf_map_update_elem(&counters, key, &none, BPF_NOEXIST);
	c = bpf_map_lookup_elem(&counters, key);
	if (c)
		return c;
	key->ifindex = 0;
	key->prefix = 0;
	key->reason = key->reason < REASON_EXEMPT ? REASON_OVERFLOW : REASON_EXEMPT;
	key->upper = 0;
	return bpf_map_lookup_elem(&counters, key);
}

/* metered says whether one more sample is due. The first ones of senders have a share of their own, so that none that was
 * quiet until now is missed for one that talks much; it ends too, for who sends may have a new face for each packet. */
static __always_inline bool metered(__u64 now, bool first)
{
	__u32 zero = 0;
	struct meter *m = bpf_map_lookup_elem(&meters, &zero);

	if (!m)
		return false;
	if (now - m->window >= SAMPLE_WINDOW) {
		m->window = now;
		m->used = 0;
		m->firsts = 0;
	}
	if (m->used < sample_burst) {
		m->used++;
		return true;
	}
	if (first && m->firsts < sample_burst) {
		m->firsts++;
		return true;
	}
	m->suppressed++;
	return false;
}

static __always_inline void lost_sample(void)
{
	__u32 zero = 0;
	struct meter *m = bpf_map_lookup_elem(&meters, &zero);

	if (m)
		m->lost++;
}

/* running fills in the process that runs now, by its leader's name, unless it is the kernel's own. */
static __always_inline bool running(struct owner *o)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *leader = NULL;
	const struct cred *cred = NULL;
	unsigned int flags = PF_KTHREAD;

	peek(&flags, &task->flags);
	peek(&o->pid, &task->tgid);
	if (flags & PF_KTHREAD || !o->pid)
		return false;
	peek(&cred, &task->cred);
	peek(&o->uid, &cred->uid.val);
	peek(&leader, &task->group_leader);
	peek(&o->comm, &leader->comm);
	return true;
}

static __always_inline void copy_address(__be32 *to, const __be32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

#endif
