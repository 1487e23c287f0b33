/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Packet headers and protocol numbers. */
#ifndef CULVERT_NET_H
#define CULVERT_NET_H

#include "bpf.h"

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define htons(x) ((__u16)__builtin_bswap16(x))
#define htonl(x) ((__u32)__builtin_bswap32(x))
#else
#define htons(x) ((__u16)(x))
#define htonl(x) ((__u32)(x))
#endif
#define ntohs htons

#define ETH_P_IP 0x0800
#define ETH_P_8021Q 0x8100
#define ETH_P_IPV6 0x86DD
#define ETH_P_8021AD 0x88A8
#define ETH_P_QINQ1 0x9100
#define ETH_P_QINQ2 0x9200

#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH 51
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define IPPROTO_SCTP 132
#define IPPROTO_DCCP 33
#define IPPROTO_MH 135
#define IPPROTO_UDPLITE 136

#define IP_MF 0x2000
#define IP_OFFSET 0x1FFF
#define IP6_MF 0x0001
#define IP6_OFFSET 0xFFF8

#define ICMP_UNREACHABLE 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER 12
#define ICMPV6_ERRORS_END 128 /* types below are errors */

#define ND_SOLICIT 135	 /* neighbour solicitation */
#define ND_ADVERTISE 136 /* neighbour advertisement */
#define ND_MIN 24	 /* from the ICMPv6 header to the target's end */
#define ND_MAX 64	 /* and with options: link-layer address, nonce */
#define ND_BURST 128	 /* exempt in one window */
#define ND_WINDOW 1000000000ULL /* 1 s */

#define DHCP_SERVER 67
#define DHCP_CLIENT 68
#define DHCP_COOKIE_AT (8 + 236) /* from the UDP header */
#define DHCP_COOKIE 0x63825363
#define DHCP_MAX 1024 /* from the IP header; a client that was told no more keeps to 576 */
#define DHCP_BURST 10 /* exempt in one window */
#define DHCP_WINDOW 10000000000ULL /* 10 s */
#define DHCPV6_CLIENT 546
#define DHCPV6_SERVER 547

#define RTN_BROADCAST 3

#define IPOPT_END 0
#define IPOPT_NOOP 1
#define IPOPT_LSRR 131
#define IPOPT_SSRR 137

#define RH_TYPE_0 0   /* a list of addresses, the last one last */
#define RH_TYPE_2 2   /* one address */
#define RH_SEGMENTS 4 /* a list of addresses, the last one first */

struct ethhdr {
	__u8 h_dest[6];
	__u8 h_source[6];
	__be16 h_proto;
};

#define VLAN_VID 0x0fff

struct vlanhdr {
	__be16 tci;
	__be16 proto;
};

struct iphdr {
	__u8 ihl : 4, version : 4;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6hdr {
	__be32 flow; /* version, traffic class, flow label */
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	__be32 saddr[4];
	__be32 daddr[4];
};

struct ipv6ext {
	__u8 nexthdr;
	__u8 len;
	__be16 frag_off; /* of a fragment header */
	__be32 id;
};

/* The first words of a neighbour solicitation or advertisement. */
struct nd {
	__u8 type;
	__u8 code;
	__u16 check;
	__be32 flags;
	__be32 target[4];
};

struct ipopt {
	__u8 type;
	__u8 len;
	__u8 next; /* of a source route: where the next hop stands, from 1 */
};

struct routing {
	__u8 nexthdr;
	__u8 len;
	__u8 type;
	__u8 left;
	__be32 more;
};

struct ports {
	__be16 source;
	__be16 dest;
};

#endif
