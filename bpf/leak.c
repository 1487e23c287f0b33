// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/*
 * leak: tc egress, on every device but loopback and the tunnels.
 *
 * Looks up the destination of each packet that is about to leave. What the policy protects and what does not leave by
 * its own tunnel is counted, told in a sample, and let go or dropped. All else goes on to the next program untouched.
 */
#include "culvert.h"

/* ---- constants ---- */

#define MAX_TAGS 8 /* VLAN tags in the packet itself */

char __license[] SEC("license") = "Dual BSD/GPL";

/* ---- structs ---- */

/* Kept in the object for the loader's Go types; no program reads it. */
struct shown {
	enum class class;
	enum action action;
	enum reason reason;
	enum origin origin;
	enum place place;
	enum from from;
	struct prefix4 prefix4;
	struct prefix6 prefix6;
	struct rule rule;
	struct sample sample;
	struct device device;
	struct vlan_key vlan_key;
} *shown SEC(".shown") __attribute__((unused));

/* Whose the device is that a packet leaves by. */
enum domain {
	DOMAIN_NONE,
	DOMAIN_EXEMPT, /* excluded by the operator */
	DOMAIN_TUNNEL,
};

/* A VLAN tag as it stands in a frame. */
struct tag {
	__be16 proto;
	__be16 tci;
};

struct sums {
	__u64 packets;
	__u64 bytes;
	__u64 dropped;
};

/* ---- maps ---- */

/* The packet at hand. One at a time on a CPU: egress runs with softirqs off. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} packets SEC(".maps");

/* ---- helpers: headers ---- */

/* load copies from off after the IP header, also where the packet is not linear. */
static __always_inline bool load(struct __sk_buff *skb, const struct spot *at, __u32 off, void *to, __u32 len)
{
	if (at->ether)
		return !bpf_skb_load_bytes(skb, at->net + off, to, len);
	return !bpf_skb_load_bytes_relative(skb, off, to, len, BPF_HDR_START_NET);
}

/* A later fragment has no upper-layer header; a first one announces more. */
static __always_inline bool later(const struct packet *p)
{
	return p->frag & IP_OFFSET;
}

static __always_inline bool first(const struct packet *p)
{
	return p->frag == IP_MF;
}

/* has_ports is true of the protocols that begin with a source and a destination port. */
static __always_inline bool has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP || proto == IPPROTO_DCCP ||
	       proto == IPPROTO_UDPLITE;
}

static __always_inline void parse_ports(struct __sk_buff *skb, struct packet *p)
{
	struct ports ports;

	if (later(p) || !has_ports(p->proto) || !load(skb, &p->at, p->upper, &ports, sizeof(ports)))
		return;
	p->sport = ntohs(ports.source);
	p->dport = ntohs(ports.dest);
}

static __always_inline void parse4(struct packet *p, const struct iphdr *ip)
{
	p->family = 4;
	p->upper = ip->ihl * 4;
	p->source[0] = ip->saddr;
	p->dest[0] = ip->daddr;
	p->id = ip->id;
	p->proto = p->whole = ip->protocol;
	p->tos = ip->tos;
	p->hops = ip->ttl;
	p->frag = ntohs(ip->frag_off) & (IP_MF | IP_OFFSET);
}

static __always_inline void parse_fragment(struct packet *p, const struct ipv6ext *x)
{
	__u16 frag = ntohs(x->frag_off);

	p->id = x->id;
	p->frag = (frag & IP6_MF) << 13 | frag >> 3;
	p->whole = x->nexthdr;
}

/* parse_routing finds the last stop of a packet that a routing header sends by way of others. */
static __always_inline void parse_routing(struct __sk_buff *skb, struct packet *p)
{
	struct routing h;
	__u32 off = p->upper + sizeof(h);

	if (!load(skb, &p->at, p->upper, &h, sizeof(h)) || !h.left || h.len < 2)
		return;
	if (h.type == RH_TYPE_0)
		off += (h.len / 2 - 1) * sizeof(p->final);
	else if (h.type != RH_TYPE_2 && h.type != RH_SEGMENTS)
		return;
	p->routed = load(skb, &p->at, off, p->final, sizeof(p->final));
}

/* skip_header steps over one extension header and returns false at the upper-layer header. */
static __always_inline bool skip_header(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6ext x;

	if (p->proto != IPPROTO_HOPOPTS && p->proto != IPPROTO_ROUTING && p->proto != IPPROTO_DSTOPTS &&
	    p->proto != IPPROTO_FRAGMENT && p->proto != IPPROTO_AH && p->proto != IPPROTO_MH)
		return false;
	if (!load(skb, &p->at, p->upper, &x, sizeof(x)))
		return false;
	if (p->proto == IPPROTO_FRAGMENT)
		parse_fragment(p, &x);
	if (p->proto == IPPROTO_ROUTING)
		parse_routing(skb, p);
	if (p->proto == IPPROTO_AH)
		p->sealed = true;
	if (p->proto == IPPROTO_FRAGMENT)
		p->upper += 8;
	else if (p->proto == IPPROTO_AH)
		p->upper += (x.len + 2) * 4;
	else
		p->upper += (x.len + 1) * 8;
	p->proto = x.nexthdr;
	return !later(p);
}

static __always_inline void parse6(struct __sk_buff *skb, struct packet *p, const struct ipv6hdr *ip)
{
	p->family = 6;
	p->upper = sizeof(*ip);
	copy_address(p->source, ip->saddr);
	copy_address(p->dest, ip->daddr);
	p->proto = ip->nexthdr;
	p->tos = ntohs(*(const __be16 *)ip) >> 4;
	p->hops = ip->hop_limit;
	p->size = ntohs(ip->payload_len);
	for (int i = 0; i < MAX_HEADERS; i++)
		if (!skip_header(skb, p))
			break;
}

/* ---- helpers: rules ---- */

/* length of the packet from its IP header on, as far as it is there. */
static __always_inline __u32 length(struct __sk_buff *skb, const struct packet *p)
{
	return *(volatile __u32 *)&skb->len - p->at.net; /* else clang reads it by a pointer, which is not allowed */
}

/* nd_of_link: solicitations that probe their own destination, and advertisements, as RFC 4861 has them: its receivers
 * discard those with another hop limit, so none comes from afar. The other kinds go to many, or to link-local addresses. */
static __always_inline bool nd_of_link(struct __sk_buff *skb, const struct packet *p)
{
	struct nd nd;

	if (p->family != 6 || p->proto != IPPROTO_ICMPV6 || p->upper != sizeof(struct ipv6hdr) || p->hops != 255)
		return false;
	if (p->size < ND_MIN || p->size > ND_MAX || length(skb, p) > sizeof(struct ipv6hdr) + ND_MAX)
		return false;
	if (!load(skb, &p->at, p->upper, &nd, sizeof(nd)) || nd.code)
		return false;
	if (nd.type == ND_ADVERTISE)
		return true;
	return nd.type == ND_SOLICIT && nd.target[0] == p->dest[0] && nd.target[1] == p->dest[1] &&
	       nd.target[2] == p->dest[2] && nd.target[3] == p->dest[3];
}

/* dhcp_of_link: between the two well-known ports, and for IPv4 with the cookie that every DHCP message carries. */
static __always_inline bool dhcp_of_link(struct __sk_buff *skb, const struct packet *p)
{
	__be32 cookie;

	if (p->proto != IPPROTO_UDP || p->frag || length(skb, p) > DHCP_MAX)
		return false;
	if (p->family == 6)
		return p->upper == sizeof(struct ipv6hdr) &&
		       ((p->sport == DHCPV6_CLIENT && p->dport == DHCPV6_SERVER) ||
			(p->sport == DHCPV6_SERVER && p->dport == DHCPV6_CLIENT));
	if (p->upper != sizeof(struct iphdr))
		return false;
	if (!(p->sport == DHCP_CLIENT && p->dport == DHCP_SERVER) &&
	    !(p->sport == DHCP_SERVER && (p->dport == DHCP_CLIENT || p->dport == DHCP_SERVER)))
		return false;
	return load(skb, &p->at, p->upper + DHCP_COOKIE_AT, &cookie, sizeof(cookie)) && cookie == htonl(DHCP_COOKIE);
}

/* link_reason exempts what the link itself needs of this host: neighbour discovery and DHCP with a neighbour, at a bounded
 * rate. A forwarded or source-routed packet is never exempt. Discovery of the kernel's own is exempt to any address: the
 * kernel knows neighbours by routes too, and by the addresses that they ask from. */
static __always_inline enum reason link_reason(struct __sk_buff *skb, const struct rule *r, const struct packet *p,
					       const struct subnet *net)
{
	bool near = net || r->class == CLASS_GATEWAY;
	enum reason why = REASON_NONE;

	if (skb->ingress_ifindex || skb->gso_size || p->routed)
		return REASON_NONE;
	if (nd_of_link(skb, p) && (near || of_kernel((void *)skb)))
		why = REASON_EXEMPT_ND;
	else if (near && dhcp_of_link(skb, p))
		why = REASON_EXEMPT_DHCP;
	return why && paced(skb->ifindex, why) ? why : REASON_NONE;
}

/* subnet_broadcast: only the last address of a network on the link is one, whatever else is configured as such. A group
 * frame counts as one only when the kernel routed it as such; a forger has no such route. */
static __always_inline bool subnet_broadcast(struct __sk_buff *skb, const struct packet *p, const struct subnet *net)
{
	const struct sk_buff *k = (void *)skb;
	unsigned long dst = 0;
	__u16 type = 0;

	if (!net || !net->hosts || (p->dest[0] & net->hosts) != net->hosts)
		return false;
	if (!p->at.group || p->family != 4 || p->routed || peek(&dst, &k->_skb_refdst))
		return false;
	return !peek(&type, &((struct rtable *)(dst & ~1UL))->rt_type) && type == RTN_BROADCAST;
}

/* inward is true of what is on its way in, or back in: it does not leave this host by such a device. */
static __always_inline bool inward(struct __sk_buff *skb, const struct packet *p, const struct subnet *net)
{
	struct subnet_key whole = {.bits = 8 * (sizeof(whole) - sizeof(whole.bits)), .ifindex = skb->ifindex};
	const struct sk_buff *k = (void *)skb;

	if (net && net->place == PLACE_INWARD)
		return peek_bits(k, from_ingress);
	return subnet_of(0, p) && bpf_map_lookup_elem(&subnets, &whole);
}

/* ---- helpers: domains ---- */

/* domain_of says whose domain a device is: its own, or that of the first one above it that it is a port of. */
static __noinline enum domain domain_of(const struct rule *r, __u32 ifindex)
{
	for (int i = 0; i < MAX_ABOVE; i++) {
		struct device *d;

		if (owned(r, ifindex))
			return DOMAIN_TUNNEL;
		d = bpf_map_lookup_elem(&devices, &ifindex);
		if (!d)
			return DOMAIN_NONE;
		if (d->groups & r->exempt)
			return DOMAIN_EXEMPT;
		if (!d->master)
			return DOMAIN_NONE;
		ifindex = d->master;
	}
	return DOMAIN_NONE;
}

static __always_inline bool is_tag(__be16 proto)
{
	return proto == htons(ETH_P_8021Q) || proto == htons(ETH_P_8021AD) || proto == htons(ETH_P_QINQ1) ||
	       proto == htons(ETH_P_QINQ2);
}

/* vlan_on is the device of a VLAN on another device, 0 when there is none. */
static __always_inline __u32 vlan_on(__u32 ifindex, __be16 proto, __u16 tci)
{
	struct vlan_key key = {.ifindex = ifindex, .proto = proto, .vid = tci & VLAN_VID};
	__u32 *vlan = bpf_map_lookup_elem(&vlans, &key);

	return vlan ? *vlan : 0;
}

/* domain_of_tags says whose domain a tagged frame is in: that of the VLAN's device, whoever wrote the tag. The outermost tag
 * may be beside the packet, the others are within it. */
static __noinline enum domain domain_of_tags(struct __sk_buff *skb, const struct rule *r, __u32 ifindex)
{
	__u32 off = 2 * sizeof(((struct ethhdr *)0)->h_dest);
	enum domain whose;
	struct tag tag;

	if (skb->vlan_present) {
		ifindex = vlan_on(ifindex, skb->vlan_proto, skb->vlan_tci);
		whose = ifindex ? domain_of(r, ifindex) : DOMAIN_NONE;
		if (!ifindex || whose != DOMAIN_NONE)
			return whose;
	}
	for (int i = 0; i < MAX_VLAN_TAGS; i++, off += sizeof(tag)) {
		if (bpf_skb_load_bytes(skb, off, &tag, sizeof(tag)) || !is_tag(tag.proto))
			break;
		ifindex = vlan_on(ifindex, tag.proto, ntohs(tag.tci));
		if (!ifindex)
			break;
		whose = domain_of(r, ifindex);
		if (whose != DOMAIN_NONE)
			return whose;
	}
	return DOMAIN_NONE;
}

/* routed_by is the device that the kernel routed the packet to. The packet keeps that note on its way down to the device
 * below, and no sender can forge it: so it proves that a macvlan or an ipvlan sent the packet. It is 0 for a device of
 * another namespace, such as a container's: that may have the number of a device here. */
static __always_inline __u32 routed_by(struct __sk_buff *skb)
{
	const struct sk_buff *k = (void *)skb;
	struct net_device *dev = NULL, *by = NULL;
	struct net *net = NULL, *here = NULL;
	unsigned long dst = 0;
	int ifindex = 0;

	if (peek(&dst, &k->_skb_refdst) || !(dst & ~1UL) || peek(&dev, &((struct dst_entry *)(dst & ~1UL))->dev) || !dev)
		return 0;
	if (peek(&by, &k->dev) || peek(&here, &by->nd_net.net) || peek(&net, &dev->nd_net.net) || net != here)
		return 0;
	peek(&ifindex, &dev->ifindex);
	return ifindex;
}

/* domain says whether a packet belongs to the rule's tunnel, or to an excluded device, though it leaves by another one: a port
 * sends for its master, and a device below sends for the one above it. What these send themselves does not belong. */
static __noinline enum domain domain(struct __sk_buff *skb, const struct packet *p, const struct rule *r)
{
	enum domain whose = domain_of(r, skb->ifindex);
	__u32 base = skb->ifindex, above;

	if (whose == DOMAIN_NONE && (above = routed_by(skb)) && above != skb->ifindex)
		whose = domain_of(r, above);
	for (int i = 0; i < 2 && p->at.ether && whose == DOMAIN_NONE; i++) {
		struct device *d = bpf_map_lookup_elem(&devices, &base);

		whose = domain_of_tags(skb, r, base);
		if (!d || !d->master)
			break;
		base = d->master; /* a VLAN of the bond that this is a port of */
	}
	return whose;
}

/* protected_reason tells a leak from what belongs to the link. */
static __always_inline enum reason protected_reason(struct __sk_buff *skb, const struct rule *r, const struct packet *p,
						    const struct subnet *net)
{
	enum reason why;

	if (to_many(p))
		return REASON_NONE;
	why = link_reason(skb, r, p, net);
	if (why)
		return why;
	if (subnet_broadcast(skb, p, net))
		return REASON_EXEMPT_BROADCAST;
	return r->class == CLASS_GATEWAY ? REASON_GATEWAY : REASON_PROTECTED;
}

/* What a packet's sender may be: a bit for each from, with the user id and the mark to compare. */
struct from_whom {
	__u32 may;
	__u32 uid;
	__u32 mark;
};

#define FROM_REST (1U << 31) /* of what the kernel itself sends: resets, and the last answers of a connection */

/* blur makes the verifier forget what it knows of a value, so that it need not follow every path that led to it. */
static __always_inline __u32 blur(struct __sk_buff *skb, __u32 value)
{
	__u32 x = *(volatile __u32 *)&skb->hash;

	value ^= x;
	asm volatile("" : "+r"(value));
	return value ^ x;
}

/* of_process is true of a process's own packet. A packet that a tunnel in the kernel sends may carry the socket of the packet
 * within, but its source port is that of the tunnel's socket. */
static __always_inline bool of_process(struct bpf_sock *sk, __u16 sport)
{
	return (sk->family == AF_INET || sk->family == AF_INET6) && sport && sk->src_port == sport;
}

/* from_whom looks at the sender as far as the gates ask. */
static __always_inline struct from_whom from_whom(struct __sk_buff *skb, const struct rule *r, __u16 sport)
{
	struct from_whom f = {.may = 1 << FROM_ANY};
	struct bpf_sock *sk;

	if (!r->narrow)
		return f;
	if (!skb->ingress_ifindex) {
		sk = skb->sk;
		f.may |= 1 << FROM_HOST | 1 << FROM_KERNEL | 1 << FROM_MARK;
		if (sk && of_process(sk, sport))
			f.may &= ~(1 << FROM_KERNEL);
		if (sk)
			f.may |= 1 << FROM_UID;
		if (sk && r->narrow & (1 << FROM_UID | 1 << FROM_MARK)) {
			f.uid = bpf_get_socket_uid(skb);
			if (!bpf_sk_fullsock(sk) || of_kernel((void *)skb))
				f.may |= FROM_REST;
		}
	}
	f.may = blur(skb, f.may);
	f.uid = blur(skb, f.uid);
	f.mark = skb->mark;
	return f;
}

static __always_inline bool sent_by(const struct gate *g, const struct from_whom *f)
{
	if (!(f->may & 1U << (g->from & 31)))
		return false;
	if (g->from < FROM_UID || f->may & FROM_REST)
		return true;
	return g->who == (g->from == FROM_UID ? f->uid : f->mark);
}

/* What a gate says of a packet. */
enum fit {
	FIT_NOT,
	FIT_SENDER, /* all but the sender */
	FIT_WHOLE,
};

/* gate_of says whether protocol, port (where there is one to see) and sender are those of the tunnel's transport. */
static __always_inline enum fit gate_of(const struct rule *r, const struct from_whom *f, __u8 proto, __u16 port, bool portless)
{
	enum fit fit = FIT_NOT;

	for (int i = 0; i < MAX_GATES; i++) {
		const struct gate *g = &r->gate[i];

		if (i >= r->gates)
			break;
		if (g->proto != ANY_PROTO && (g->proto != proto || !(portless || !g->port || g->port == port)))
			continue;
		if (sent_by(g, f))
			return FIT_WHOLE;
		fit = FIT_SENDER;
	}
	return fit;
}

/* transport is the short way for the tunnel's own packets that are whole: most packets are such. */
static __always_inline bool transport(struct __sk_buff *skb, const struct spot *at, const struct rule *r, __u32 upper,
				      __u8 proto)
{
	struct ports *direct = (void *)(long)skb->data + sizeof(struct ethhdr) + upper;
	struct ports ports = {};
	struct from_whom f;

	if (r->class != CLASS_SERVER)
		return false;
	if (at->ether && at->net == sizeof(struct ethhdr) && (void *)(direct + 1) <= (void *)(long)skb->data_end)
		ports = *direct;
	else if (has_ports(proto) && !load(skb, at, upper, &ports, sizeof(ports)))
		return false;
	if (!has_ports(proto))
		ports.source = ports.dest = 0;
	f = from_whom(skb, r, ntohs(ports.source));
	return gate_of(r, &f, proto, ntohs(ports.dest), false) == FIT_WHOLE;
}

static __always_inline struct fragment fragment_of(const struct packet *p)
{
	struct fragment f = {.id = p->id, .proto = p->whole};

	copy_address(f.source, p->source);
	copy_address(f.dest, p->dest);
	return f;
}

/* first_again finds a first fragment in a socket's store, -1 when it is not there. */
static __noinline int first_again(const struct train *t, const struct fragment *f)
{
	for (int i = 0; i < TRAIN; i++) {
		const struct fragment *have = &t->first[i].id;

		if (have->id == f->id && have->proto == f->proto && have->dest[0] == f->dest[0] && have->dest[1] == f->dest[1] &&
		    have->dest[2] == f->dest[2] && have->dest[3] == f->dest[3] && have->source[0] == f->source[0] &&
		    have->source[1] == f->source[1] && have->source[2] == f->source[2] && have->source[3] == f->source[3])
			return t->first[i].why;
	}
	return -1;
}

/* keep_first remembers a first fragment; only later ones of the same sender can push it out. */
static __always_inline void keep_first(struct __sk_buff *skb, const struct fragment *f, __u8 why)
{
	struct bpf_sock *sk = skb->sk;
	struct train *t = NULL;
	__u32 at;

	if (skb->ingress_ifindex) {
		bpf_map_update_elem(&forwarded, f, &why, BPF_ANY);
		return;
	}
	if (sk)
		t = bpf_sk_storage_get(&trains, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!t) {
		bpf_map_update_elem(&fragments, f, &why, BPF_ANY);
		return;
	}
	/* Fetch-and-add needs Linux 5.12. Without it two CPUs that send at once by one socket may get the same place. */
	__sync_fetch_and_add(&t->next, 1);
	at = t->next % TRAIN;
	t->first[at].id = *f;
	t->first[at].why = why;
}

/* first_why says why a later fragment's first one was no transport, -1 when that never came by. */
static __always_inline int first_why(struct __sk_buff *skb, const struct fragment *f)
{
	struct bpf_sock *sk = skb->sk;
	struct train *t = NULL;
	__u8 *why;

	if (skb->ingress_ifindex) {
		why = bpf_map_lookup_elem(&forwarded, f);
		return why ? *why : -1;
	}
	if (sk)
		t = bpf_sk_storage_get(&trains, sk, NULL, 0);
	if (t)
		return first_again(t, f);
	why = bpf_map_lookup_elem(&fragments, f);
	return why ? *why : -1;
}

/* later_reason: a later fragment is what its first one was. If that never came by here (the queue of a neighbour that is
 * being resolved drops its oldest), the datagram is dead: no leak to report, but not let go either where leaks are not. */
static __always_inline enum reason later_reason(struct __sk_buff *skb, const struct rule *r, const struct packet *p,
						const struct from_whom *from)
{
	struct fragment f = fragment_of(p);
	int why = first_why(skb, &f);

	if (why >= 0)
		return why;
	if (gate_of(r, from, p->whole, 0, false) == FIT_WHOLE)
		return REASON_NONE; /* a protocol that is let through whatever its ports */
	return gate_of(r, from, p->proto, 0, true) == FIT_WHOLE && !drops(r) ? REASON_EXEMPT_FRAGMENT : REASON_SERVER;
}

/* error_of_kernel: what the kernel answers to a packet of the server that finds nobody, such as one that was on its way while
 * the VPN client opened its socket anew. It is part of the transport; a process that sends the like is not. */
static __always_inline bool error_of_kernel(struct __sk_buff *skb, const struct packet *p)
{
	__u8 type;

	if (p->proto != (p->family == 6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP) || first(p) || skb->ingress_ifindex)
		return false;
	if (!load(skb, &p->at, p->upper, &type, sizeof(type)) || !of_kernel((void *)skb))
		return false;
	if (p->family == 6)
		return type < ICMPV6_ERRORS_END;
	return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER;
}

/* gate_reason says why a packet is no transport of the tunnel's. */
static __always_inline enum reason gate_reason(const struct rule *r, const struct packet *p, const struct from_whom *from)
{
	enum fit fit = gate_of(r, from, p->proto, p->dport, false);

	if (fit != FIT_WHOLE && p->sealed && gate_of(r, from, IPPROTO_AH, 0, false) == FIT_WHOLE)
		fit = FIT_WHOLE;
	if (fit == FIT_WHOLE)
		return REASON_NONE;
	return fit == FIT_SENDER ? REASON_SENDER : REASON_SERVER;
}

static __always_inline enum reason server_reason(struct __sk_buff *skb, const struct rule *r, const struct packet *p,
						 const struct subnet *net)
{
	struct from_whom from;
	enum reason why, link;
	struct fragment f;

	if (p->routed)
		return REASON_SERVER;
	from = from_whom(skb, r, p->sport);
	if (later(p))
		return later_reason(skb, r, p, &from);
	why = gate_reason(r, p, &from);
	if (first(p)) {
		f = fragment_of(p);
		keep_first(skb, &f, why);
	}
	if (why == REASON_NONE || error_of_kernel(skb, p))
		return REASON_NONE;
	link = link_reason(skb, r, p, net);
	return link ? link : why;
}

/* ---- helpers: counting ---- */

static __always_inline bool flagged(__u32 ifindex, __u32 flag)
{
	struct device *d = bpf_map_lookup_elem(&devices, &ifindex);

	return d && d->flags & flag;
}

/* segments of a packet whose sender did not say how many: what is left of it after one set of headers, cut up. */
static __always_inline __u32 cut(struct __sk_buff *skb, const struct packet *p)
{
	__u32 head = p->at.net + p->upper + 8;
	__u8 offset;

	if (p->proto == IPPROTO_TCP && load(skb, &p->at, p->upper + 12, &offset, sizeof(offset)))
		head += (offset >> 4) * 4 - 8;
	if (skb->len <= head)
		return 1;
	return (skb->len - head + skb->gso_size - 1) / skb->gso_size;
}

/* measure sums what the wire will see: each segment has the headers, and an accelerated tag is not in the packet yet. The
 * kernel worked out the headers of segments, those within a tunnel too, in wire_len, before any tc program ran. */
static __always_inline void measure(struct __sk_buff *skb, const struct packet *p, struct sums *s)
{
	s->packets = 1;
	s->bytes = *(volatile __u32 *)&skb->len; /* else clang reads one of the two by a pointer, which is not allowed */
	if (skb->gso_size) {
		s->packets = skb->gso_segs ?: cut(skb, p);
		s->bytes = *(volatile __u32 *)&skb->wire_len;
	}
	if (skb->vlan_present)
		s->bytes += s->packets * sizeof(struct vlanhdr);
}

static __always_inline void count(struct counter_key *key, const struct sums *s)
{
	struct counter *c = counter_of(key);

	if (!c)
		return;
	c->packets += s->packets;
	c->bytes += s->bytes;
	c->dropped += s->dropped;
}

/* ---- helpers: who ---- */

static __always_inline void by_owner(struct sender_key *who, char *comm, const struct owner *o)
{
	who->origin = o->origin;
	who->pid = o->pid;
	who->uid = o->uid;
	__builtin_memcpy(comm, o->comm, sizeof(o->comm));
}

/* of_user tells a socket that a process holds from the kernel's own and from those already closed. */
static __always_inline bool of_user(struct __sk_buff *skb)
{
	const struct sk_buff *k = (void *)skb;
	struct socket *socket = NULL;
	struct file *file = NULL;
	struct sock *sk = NULL;

	peek(&sk, &k->sk);
	peek(&socket, &sk->sk_socket);
	if (!socket)
		return false;
	peek(&file, &socket->file);
	return file != NULL;
}

/* by_guess: no hook saw this socket. The running task is its sender only if it could be. */
static __always_inline void by_guess(struct __sk_buff *skb, struct sender_key *who, char *comm)
{
	struct owner o = {.origin = ORIGIN_TASK};

	who->uid = bpf_get_socket_uid(skb);
	if (of_user(skb) && running(&o) && o.uid == who->uid)
		by_owner(who, comm, &o);
}

/* by_packet_socket: these send in the sender's own system call. */
static __always_inline void by_packet_socket(struct sender_key *who, char *comm)
{
	struct owner o = {.origin = ORIGIN_PACKET};

	if (running(&o))
		by_owner(who, comm, &o);
}

/* owner_of finds the note on the socket, on the listener that it answers for, or on the MPTCP socket that it is part of. */
static __always_inline struct owner *owner_of(struct bpf_sock *sk)
{
	struct owner *o = bpf_sk_storage_get(&owners, sk, NULL, 0);
	struct bpf_sock *listener;
	struct mptcp_sock *whole;

	if (o)
		return o;
	listener = bpf_get_listener_sock(sk);
	if (listener)
		return bpf_sk_storage_get(&owners, listener, NULL, 0);
	if (!has(BPF_FUNC_skc_to_mptcp_sock))
		return NULL;
	whole = bpf_skc_to_mptcp_sock(sk);
	return whole ? bpf_sk_storage_get(&owners, whole, NULL, 0) : NULL;
}

/* attribute fills in who sent the packet. A forwarded one may still carry the socket of another namespace. */
static __always_inline void attribute(struct __sk_buff *skb, const struct packet *p, struct sender_key *who, char *comm)
{
	struct bpf_sock *sk = skb->sk;
	struct owner *o;

	if (skb->ingress_ifindex) {
		who->origin = ORIGIN_FORWARDED;
		who->ingress = skb->ingress_ifindex;
		copy_address(who->source, p->source);
		return;
	}
	if (!sk)
		return;
	who->bound = sk->bound_dev_if;
	if (sk->family == AF_PACKET) {
		by_packet_socket(who, comm);
		return;
	}
	o = owner_of(sk);
	if (o)
		by_owner(who, comm, o);
	else
		by_guess(skb, who, comm);
}

/* sender_of returns the sums of who, and whether they are new. */
static __always_inline struct sender *sender_of(const struct sender_key *who, __u64 now, bool *fresh)
{
	struct sender none = {.first = now};
	struct sender *s = bpf_map_lookup_elem(&senders, who);

	if (s)
		return s;
	*fresh = true;
	bpf_map_update_elem(&senders, who, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&senders, who);
}

/* charge adds the packet to its sender's sums. They are shared by the CPUs, hence the atomics. */
static __always_inline bool charge(struct __sk_buff *skb, const struct packet *p, const struct sender_key *who,
				   const char *comm, const struct sums *sums, __u64 now)
{
	bool fresh = false;
	struct sender *s = sender_of(who, now, &fresh);

	if (!s)
		return fresh;
	__sync_fetch_and_add(&s->packets, sums->packets);
	__sync_fetch_and_add(&s->bytes, sums->bytes);
	__sync_fetch_and_add(&s->dropped, sums->dropped);
	s->last = now;
	copy_address(s->to, p->dest);
	s->mark = skb->mark;
	s->port = p->dport;
	s->proto = p->proto;
	s->tos = p->tos;
	__builtin_memcpy(s->comm, comm, sizeof(s->comm));
	if (fresh)
		s->cgroup = bpf_skb_cgroup_id(skb);
	return fresh;
}

static __always_inline void tell(struct __sk_buff *skb, const struct packet *p, const struct sender_key *who,
				 const char *comm, const struct sums *sums, __u64 now)
{
	struct sample *s = bpf_ringbuf_reserve(&samples, sizeof(*s), 0);

	if (!s) {
		lost_sample();
		return;
	}
	s->time = now;
	s->cookie = bpf_get_socket_cookie(skb);
	s->cgroup = bpf_skb_cgroup_id(skb);
	s->ifindex = who->ifindex;
	s->ingress = who->ingress;
	s->bound = who->bound;
	s->prefix = who->prefix;
	s->pid = who->pid;
	s->uid = who->uid;
	s->mark = skb->mark;
	s->bytes = sums->bytes;
	s->segments = sums->packets;
	s->sport = p->sport;
	s->dport = p->dport;
	copy_address(s->source, p->source);
	copy_address(s->dest, p->dest);
	__builtin_memcpy(s->comm, comm, sizeof(s->comm));
	s->family = p->family;
	s->proto = p->proto;
	s->tos = p->tos;
	s->reason = who->reason;
	s->origin = who->origin;
	s->dropped = sums->dropped != 0;
	s->pad[0] = s->pad[1] = 0;
	bpf_ringbuf_submit(s, 0);
}

/* ---- helpers: verdict ---- */

/* record writes down a packet that the policy has something to say about, and returns its verdict. */
static __always_inline int record(struct __sk_buff *skb, const struct packet *p, const struct rule *r, enum reason why)
{
	bool upper = flagged(skb->ifindex, DEVICE_UPPER);
	struct counter_key key = {.ifindex = skb->ifindex, .prefix = r->id, .reason = why, .upper = upper};
	struct sender_key who = {
		.ifindex = skb->ifindex, .prefix = r->id, .reason = why, .family = p->family, .upper = upper,
	};
	struct sums sums = {};
	char comm[16] = {};
	__u64 now;

	measure(skb, p, &sums);
	if (why < REASON_EXEMPT && drops(r))
		sums.dropped = sums.packets;
	count(&key, &sums);
	if (why >= REASON_EXEMPT)
		return TC_NEXT; /* by rule no leak: seen, counted, never dropped */
	now = bpf_ktime_get_boot_ns();
	attribute(skb, p, &who, comm);
	if (metered(now, charge(skb, p, &who, comm, &sums, now)))
		tell(skb, p, &who, comm, &sums, now);
	return sums.dropped ? TC_SHOT : TC_NEXT; /* a leak: stopped, or let go as asked */
}

/* judge decides by the rule of the longest prefix. */
static __always_inline int judge(struct __sk_buff *skb, struct packet *p, const struct rule *r)
{
	struct subnet *net = subnet_of(skb->ifindex, p);
	const struct sk_buff *k = (void *)skb;
	struct net_device *dev = NULL;
	enum domain whose;
	enum reason why;

	if (r->tunnel[0] && !peek(&dev, &k->dev) && returned(r, dev))
		return TC_NEXT; /* its own tunnel, back again */
	if (inward(skb, p, net))
		return TC_NEXT; /* not on its way out */
	whose = domain(skb, p, r);
	if (whose == DOMAIN_TUNNEL)
		return TC_NEXT; /* what its own tunnel sends, by a device below it */
	parse_ports(skb, p);
	why = r->class == CLASS_SERVER ? server_reason(skb, r, p, net) : protected_reason(skb, r, p, net);
	if (why == REASON_NONE)
		return TC_NEXT; /* the tunnel's own transport, or sent to many */
	if (why < REASON_EXEMPT && whose == DOMAIN_EXEMPT)
		why = REASON_EXEMPT_DEVICE;
	return record(skb, p, r, why);
}

/* passes is true where no header past the destination matters: not our affair, or in its own tunnel. */
static __always_inline bool passes(struct __sk_buff *skb, const struct rule *r)
{
	if (!r || r->class == CLASS_EXCLUDED || r->class == CLASS_IGNORED)
		return true;
	return owned(r, skb->ifindex);
}

/* packet_of begins a packet that needs a closer look. It is not on the stack: what the verifier reads from a map it takes
 * as unknown, and so need not follow every way that led here. */
static __always_inline struct packet *packet_of(const struct spot *at)
{
	__u32 zero = 0;
	struct packet *p = bpf_map_lookup_elem(&packets, &zero);

	if (!p)
		return NULL;
	__builtin_memset(p, 0, sizeof(*p));
	p->at = *at;
	return p;
}

/* load4 and load6 copy the IP header, straight from memory in the ordinary case. */
static __always_inline bool load4(struct __sk_buff *skb, const struct spot *at, struct iphdr *ip)
{
	struct iphdr *direct = (void *)(long)skb->data + sizeof(struct ethhdr);

	if (!at->ether || at->net != sizeof(struct ethhdr) || (void *)(direct + 1) > (void *)(long)skb->data_end)
		return load(skb, at, 0, ip, sizeof(*ip));
	*ip = *direct;
	return true;
}

static __always_inline bool load6(struct __sk_buff *skb, const struct spot *at, struct ipv6hdr *ip)
{
	struct ipv6hdr *direct = (void *)(long)skb->data + sizeof(struct ethhdr);

	if (!at->ether || at->net != sizeof(struct ethhdr) || (void *)(direct + 1) > (void *)(long)skb->data_end)
		return load(skb, at, 0, ip, sizeof(*ip));
	*ip = *direct;
	return true;
}

/* parse_options finds the last stop of a packet that a source-route option sends by way of others. The offset is kept in
 * p: the verifier takes it as unknown there, and need not follow every way through the options. */
static __always_inline void parse_options(struct __sk_buff *skb, struct packet *p, __u32 end)
{
	struct ipopt o;

	p->upper = sizeof(struct iphdr);
	for (int i = 0; i < MAX_OPTIONS; i++) {
		if (p->upper + sizeof(o) > end || !load(skb, &p->at, p->upper, &o, sizeof(o)) || o.type == IPOPT_END)
			break;
		if (o.type == IPOPT_LSRR || o.type == IPOPT_SSRR) {
			if (o.next < o.len && p->upper + o.len <= end)
				p->routed = load(skb, &p->at, p->upper + o.len - 4, p->final, sizeof(p->final[0]));
			break;
		}
		if (o.type != IPOPT_NOOP && o.len < 2)
			break;
		p->upper += o.type == IPOPT_NOOP ? 1 : o.len;
	}
	p->upper = end;
}

static __always_inline int witness4(struct __sk_buff *skb, const struct spot *at)
{
	struct packet *p;
	struct iphdr ip;
	struct rule *r;
	bool free;

	if (!load4(skb, at, &ip))
		return TC_NEXT; /* too short to be IP */
	r = rule4(&ip.daddr);
	free = passes(skb, r);
	if (free && ip.ihl <= 5)
		return TC_NEXT; /* where the policy lets it go */
	if (!free && ip.ihl <= 5 && !(ip.frag_off & htons(IP_MF | IP_OFFSET)) &&
	    transport(skb, at, r, sizeof(ip), ip.protocol))
		return TC_NEXT; /* the tunnel's own */
	p = packet_of(at);
	if (!p)
		return TC_NEXT; /* never */
	parse4(p, &ip);
	if (ip.ihl > 5)
		parse_options(skb, p, ip.ihl * 4);
	if (free) {
		if (!p->routed)
			return TC_NEXT; /* it ends there */
		p->dest[0] = p->final[0];
		r = rule4(p->dest);
		if (passes(skb, r))
			return TC_NEXT; /* where the policy lets it go */
	}
	return judge(skb, p, r);
}

/* may_route is true where a routing header may follow. */
static __always_inline bool may_route(__u8 nexthdr)
{
	return nexthdr == IPPROTO_ROUTING || nexthdr == IPPROTO_HOPOPTS || nexthdr == IPPROTO_DSTOPTS;
}

static __always_inline int witness6(struct __sk_buff *skb, const struct spot *at)
{
	struct packet *p;
	struct ipv6hdr ip;
	struct rule *r;
	bool free;

	if (!load6(skb, at, &ip))
		return TC_NEXT; /* too short to be IP */
	r = rule6(ip.daddr);
	free = passes(skb, r);
	if (free && !may_route(ip.nexthdr))
		return TC_NEXT; /* where the policy lets it go */
	if (!free && !may_route(ip.nexthdr) && transport(skb, at, r, sizeof(ip), ip.nexthdr))
		return TC_NEXT; /* the tunnel's own */
	p = packet_of(at);
	if (!p)
		return TC_NEXT; /* never */
	parse6(skb, p, &ip);
	if (free) {
		if (!p->routed)
			return TC_NEXT; /* it ends there */
		copy_address(p->dest, p->final);
		r = rule6(p->dest);
		if (passes(skb, r))
			return TC_NEXT; /* where the policy lets it go */
	}
	return judge(skb, p, r);
}

/* strip moves past VLAN tags that are in the packet itself and returns the type of what they hold. */
static __always_inline __be16 strip(struct __sk_buff *skb, struct spot *at, __be16 proto)
{
	struct vlanhdr tag;

	for (int i = 0; i < MAX_TAGS && is_tag(proto); i++) {
		if (!load(skb, at, 0, &tag, sizeof(tag)))
			return 0;
		at->net += sizeof(tag);
		proto = tag.proto;
	}
	return proto;
}

/* ---- programs ---- */

static __always_inline bool is_ip(__be16 proto)
{
	return proto == htons(ETH_P_IP) || proto == htons(ETH_P_IPV6);
}

/* Devices whose packets begin with an Ethernet header. What the frame says goes, not what the sender said of it; but a
 * device may have changed its kind, or another program may have handed on a packet of a device without link headers. */
SEC("tc")
int leak_ether(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct spot at = {.ether = true, .net = sizeof(*eth)};
	__be16 proto;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_NEXT; /* not even a frame */
	at.group = eth->h_dest[0] & 1;
	proto = strip(skb, &at, eth->h_proto);
	if (!is_ip(proto)) {
		if (flagged(skb->ifindex, DEVICE_CONDUIT))
			return TC_NEXT; /* judged at the port of the switch */
		proto = skb->protocol;
		at.ether = false;
		at.net = 0;
	}
	if (proto == htons(ETH_P_IP))
		return witness4(skb, &at);
	if (proto == htons(ETH_P_IPV6))
		return witness6(skb, &at);
	return TC_NEXT; /* ARP and all else that is not IP */
}

/* All other devices: the kernel knows where the IP header is, and its first bits say which IP. */
SEC("tc")
int leak_bare(struct __sk_buff *skb)
{
	struct spot at = {};
	__u8 version;

	if (!load(skb, &at, 0, &version, sizeof(version)))
		return TC_NEXT; /* empty */
	if (version >> 4 == 4)
		return witness4(skb, &at);
	if (version >> 4 == 6)
		return witness6(skb, &at);
	return TC_NEXT; /* not IP */
}
