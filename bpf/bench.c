// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/*
 * bench: what leak is measured against, and a tagger for the tests of VLANs. None of it is ever in production.
 */
#include "culvert.h"

/* ---- constants ---- */

char __license[] SEC("license") = "Dual BSD/GPL";

/* ---- maps ---- */

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct prefix4));
	__uint(value_size, sizeof(struct rule));
} bare_rules SEC(".maps");

/* ---- programs ---- */

SEC("tc")
int bench_empty(struct __sk_buff *skb)
{
	return TC_NEXT;
}

/* Ends the chain, as a program does that knows of no other. */
SEC("tc")
int bench_end(struct __sk_buff *skb)
{
	return TC_OK;
}

/* The least that any longest-prefix match on IPv4 must do. */
SEC("tc")
int bench_bare(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct prefix4 key = {.bits = 32};

	if ((void *)(ip + 1) > (void *)(long)skb->data_end || eth->h_proto != htons(ETH_P_IP))
		return TC_NEXT;
	key.addr = ip->daddr;
	return bpf_map_lookup_elem(&bare_rules, &key) ? TC_SHOT : TC_NEXT;
}

/* Tags every frame once, accelerated; the second of a pair moves the first one's tag into the packet. */
SEC("tc")
int bench_tag(struct __sk_buff *skb)
{
	bpf_skb_vlan_push(skb, htons(ETH_P_8021Q), 5);
	return TC_NEXT;
}
