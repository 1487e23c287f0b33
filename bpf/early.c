// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/*
 * early: netfilter, after routing, on the whole network namespace (kernel 6.4 and later).
 *
 * Covers devices that came to be a moment ago and have no leak program yet, or cannot have one. A device that has one is
 * let through at once, so nothing is counted twice. Packet sockets do not come by here.
 */
#include "culvert.h"

/* ---- constants ---- */

#define NF_DROP 0
#define NF_ACCEPT 1
#define NFPROTO_IPV4 2
#define NFPROTO_IPV6 10

char __license[] SEC("license") = "Dual BSD/GPL";

/* ---- helpers ---- */

static __always_inline struct rule *look4(const void *header, struct packet *p)
{
	struct iphdr ip;

	if (peek(&ip, (const struct iphdr *)header))
		return NULL;
	p->family = 4;
	p->source[0] = ip.saddr;
	p->dest[0] = ip.daddr;
	p->proto = ip.protocol;
	p->tos = ip.tos;
	p->frag = ntohs(ip.frag_off) & IP_OFFSET;
	p->upper = ip.ihl * 4;
	return rule4(p->dest);
}

static __always_inline struct rule *look6(const void *header, struct packet *p)
{
	struct ipv6hdr ip;

	if (peek(&ip, (const struct ipv6hdr *)header))
		return NULL;
	p->family = 6;
	copy_address(p->source, ip.saddr);
	copy_address(p->dest, ip.daddr);
	p->proto = ip.nexthdr;
	p->tos = ntohs(*(const __be16 *)&ip) >> 4;
	p->hops = ip.hop_limit;
	p->size = ntohs(ip.payload_len);
	p->upper = sizeof(ip);
	return rule6(p->dest);
}

/* way is a packet's headers on the way past its first, as bpf_loop goes through them: the verifier looks at a step once, and
 * at each turn of a loop of its own. */
struct way {
	const void *at; /* IPv4: the options; IPv6: the header that the first one names */
	__u32 size;	/* of the options */
	__u8 proto;
	bool routed; /* a source route was found */
	__u32 final[4];
};

/* option4 looks at one byte of the options. What looks like a source route is taken for one wherever it stands. */
static long option4(__u32 i, struct way *w)
{
	__u8 b[3] = {}; /* kind, length, pointer */

	if (i + sizeof(b) > w->size || bpf_probe_read_kernel(b, sizeof(b), w->at + i))
		return 1;
	if ((b[0] != IPOPT_LSRR && b[0] != IPOPT_SSRR) || b[2] >= b[1] || i + b[1] > w->size)
		return 0;
	w->routed = !peek(&w->final[0], (const __be32 *)(w->at + i + b[1] - sizeof(w->final[0])));
	return 1;
}

static long header6(__u32 i, struct way *w)
{
	struct routing h;
	const void *list = w->at + sizeof(h);

	if ((w->proto != IPPROTO_HOPOPTS && w->proto != IPPROTO_DSTOPTS && w->proto != IPPROTO_ROUTING) ||
	    peek(&h, (const struct routing *)w->at))
		return 1;
	if (w->proto == IPPROTO_ROUTING && h.left && h.len >= 2) {
		if (h.type == RH_TYPE_0)
			list += (h.len / 2 - 1) * sizeof(w->final);
		if (h.type == RH_TYPE_0 || h.type == RH_TYPE_2 || h.type == RH_SEGMENTS)
			w->routed = !bpf_probe_read_kernel(w->final, sizeof(w->final), list);
	}
	w->proto = h.nexthdr;
	w->at += (h.len + 1) * 8;
	return 0;
}

/* ends finds where a packet ends that a source route sends by way of others, and what it carries. */
static __always_inline void ends(const void *header, struct packet *p)
{
	struct way w = {.at = header + sizeof(struct iphdr), .size = p->upper - sizeof(struct iphdr), .proto = p->proto};

	if (p->family == 6) {
		w.at = header + p->upper;
		bpf_loop(MAX_HEADERS, header6, &w, 0);
		p->proto = w.proto;
		p->upper = w.at - header;
	} else if (p->upper > sizeof(struct iphdr)) {
		bpf_loop(MAX_OPTIONS, option4, &w, 0);
	}
	p->routed = w.routed;
	copy_address(p->final, w.final);
}

/* free is true where no header past the destination matters. */
static __always_inline bool free(const struct rule *r, const struct nf_hook_state *state)
{
	return !r || r->class == CLASS_EXCLUDED || r->class == CLASS_IGNORED || owned(r, state->out->ifindex) ||
	       returned(r, state->out);
}

/* transport: by protocol and port, and not of a guest where only this host may send it. Who on this host does is for leak to
 * ask once the device has it. Whole packets come by here, but for a guest's. */
static __always_inline bool transport(const struct sk_buff *skb, const void *header, const struct packet *p, const struct rule *r)
{
	struct ports ports = {};

	peek(&ports, (const struct ports *)(header + p->upper));
	for (int i = 0; i < MAX_GATES; i++) {
		const struct gate *g = &r->gate[i];

		if (i >= r->gates)
			break;
		if (g->from != FROM_ANY && skb->skb_iif)
			continue;
		if (g->proto == ANY_PROTO || (g->proto == p->proto && (p->frag || !g->port || g->port == ntohs(ports.dest))))
			return true;
	}
	return false;
}

/* error_of_kernel: what the kernel answers to a packet of the server that finds nobody, as in leak. */
static __always_inline bool error_of_kernel(const struct sk_buff *skb, const void *header, const struct packet *p)
{
	__u8 type = 0;

	if (p->proto != (p->family == 6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP) || skb->skb_iif || !of_kernel(skb) ||
	    peek(&type, (const __u8 *)(header + p->upper)))
		return false;
	if (p->family == 6)
		return type < ICMPV6_ERRORS_END;
	return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER;
}

/* of_link: neighbour discovery and DHCP of this host. leak looks closer once the device has it. */
static __always_inline bool of_link(const struct sk_buff *skb, const void *header, const struct packet *p)
{
	const void *upper = header + p->upper;
	struct ports ports = {};
	__u8 type = 0;

	if (skb->skb_iif || skb->len > DHCP_MAX)
		return false;
	if (p->family == 6 && p->proto == IPPROTO_ICMPV6 && p->hops == 255 && p->size <= ND_MAX)
		return !peek(&type, (const __u8 *)upper) && (type == ND_SOLICIT || type == ND_ADVERTISE);
	if (p->proto != IPPROTO_UDP || peek(&ports, (const struct ports *)upper))
		return false;
	if (p->family == 6)
		return ports.source == htons(DHCPV6_CLIENT) && ports.dest == htons(DHCPV6_SERVER);
	return ports.source == htons(DHCP_CLIENT) && ports.dest == htons(DHCP_SERVER);
}

/* exempt lets pass what the new device's link itself needs, no faster than leak does. */
static __always_inline bool exempt(const struct sk_buff *skb, const void *header, const struct packet *p, const struct rule *r,
				   __u32 ifindex)
{
	bool nd = p->proto == IPPROTO_ICMPV6;

	if (!of_link(skb, header, p))
		return false;
	if (r->class != CLASS_GATEWAY && !subnet_of(ifindex, p) && !(nd && of_kernel(skb)))
		return false;
	return paced(ifindex, nd ? REASON_EXEMPT_ND : REASON_EXEMPT_DHCP);
}

/* count adds one packet. Softirqs may interrupt this program, hence the atomics. */
static __always_inline void count(struct counter_key *key, __u32 bytes, bool dropped)
{
	struct counter *c = counter_of(key);

	if (!c)
		return;
	__sync_fetch_and_add(&c->packets, 1);
	__sync_fetch_and_add(&c->bytes, bytes);
	__sync_fetch_and_add(&c->dropped, dropped);
}

static __always_inline void tell(const struct sk_buff *skb, const struct packet *p, const struct counter_key *key,
				 bool dropped, __u64 now)
{
	struct sample *s = bpf_ringbuf_reserve(&samples, sizeof(*s), 0);

	if (!s) {
		lost_sample();
		return;
	}
	__builtin_memset(s, 0, sizeof(*s));
	s->time = now;
	s->ifindex = key->ifindex;
	s->ingress = skb->skb_iif;
	s->prefix = key->prefix;
	s->mark = skb->mark;
	s->bytes = skb->len;
	s->segments = 1;
	copy_address(s->source, p->source);
	copy_address(s->dest, p->dest);
	s->family = p->family;
	s->proto = p->proto;
	s->tos = p->tos;
	s->reason = REASON_EARLY;
	s->origin = s->ingress ? ORIGIN_FORWARDED : ORIGIN_UNOWNED;
	s->dropped = dropped;
	bpf_ringbuf_submit(s, 0);
}

/* ---- programs ---- */

/* ruled finds the rule that a packet is to be judged by, NULL where it may go. One that goes on from a free address to another
 * is judged by that. */
static __always_inline struct rule *ruled(struct bpf_nf_ctx *ctx, const void *header, struct packet *p)
{
	bool six = ctx->state->pf == NFPROTO_IPV6;
	struct rule *r = six ? look6(header, p) : look4(header, p);

	ends(header, p);
	if (!free(r, ctx->state))
		return r;
	if (!p->routed)
		return NULL;
	copy_address(p->dest, p->final);
	r = six ? rule6(p->dest) : rule4(p->dest);
	return free(r, ctx->state) ? NULL : r;
}

/* passes is true of what the tunnel or the link needs. */
static __always_inline bool passes(const struct sk_buff *skb, const void *header, const struct packet *p, const struct rule *r,
				   __u32 ifindex)
{
	if (p->routed)
		return false;
	if (to_many(p) || exempt(skb, header, p, r, ifindex))
		return true;
	return r->class == CLASS_SERVER && (transport(skb, header, p, r) || error_of_kernel(skb, header, p));
}

SEC("netfilter")
int early(struct bpf_nf_ctx *ctx)
{
	const struct sk_buff *skb = ctx->skb;
	struct counter_key key = {.ifindex = ctx->state->out->ifindex};
	const void *header = skb->head + skb->network_header;
	struct packet p = {};
	struct rule *r;
	bool dropped;
	__u64 now;

	if (bpf_map_lookup_elem(&devices, &key.ifindex))
		return NF_ACCEPT; /* leak sees it, or need not */
	r = ruled(ctx, header, &p);
	if (!r || passes(skb, header, &p, r, key.ifindex))
		return NF_ACCEPT; /* where the policy lets it go */
	key.prefix = r->id;
	key.reason = REASON_EARLY;
	dropped = drops(r);
	count(&key, skb->len, dropped);
	now = bpf_ktime_get_boot_ns();
	if (metered(now, false))
		tell(skb, &p, &key, dropped, now);
	return dropped ? NF_DROP : NF_ACCEPT; /* a leak: stopped, or let go as asked */
}
