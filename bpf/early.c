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

/* ends4 and ends6 find where a packet ends that a source route sends by way of others. What looks like such an option is
 * taken for one wherever it stands: to follow the others byte by byte costs the verifier too much. */
static __noinline bool ends4(const void *header, struct packet *p)
{
	const void *options = header + sizeof(struct iphdr);
	__u8 b[MAX_OPTIONS + sizeof(struct ipopt)] = {};
	__u32 size = p->upper - sizeof(struct iphdr);

	if (p->upper <= sizeof(struct iphdr) || bpf_probe_read_kernel(b, MAX_OPTIONS, options))
		return false;
	for (__u32 i = 0; i < MAX_OPTIONS; i++) {
		__u32 len = b[i + 1];

		if ((b[i] == IPOPT_LSRR || b[i] == IPOPT_SSRR) && b[i + 2] < len && i + len <= size)
			return !peek(&p->final[0], (const __be32 *)(options + i + len - sizeof(p->final[0])));
	}
	return false;
}

static __noinline bool ends6(const void *header, struct packet *p)
{
	struct routing h;
	bool routed = false;

	for (int i = 0; i < MAX_HEADERS; i++) {
		const void *list = header + p->upper + sizeof(h);

		if (p->proto != IPPROTO_HOPOPTS && p->proto != IPPROTO_DSTOPTS && p->proto != IPPROTO_ROUTING)
			break;
		if (peek(&h, (const struct routing *)(header + p->upper)))
			break;
		if (p->proto == IPPROTO_ROUTING && h.left && h.len >= 2) {
			if (h.type == RH_TYPE_0)
				list += (h.len / 2 - 1) * sizeof(p->final);
			if (h.type == RH_TYPE_0 || h.type == RH_TYPE_2 || h.type == RH_SEGMENTS)
				routed = !bpf_probe_read_kernel(p->final, sizeof(p->final), list);
		}
		p->proto = h.nexthdr;
		p->upper += (h.len + 1) * 8;
	}
	return routed;
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

	p->routed = six ? ends6(header, p) : ends4(header, p);
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
