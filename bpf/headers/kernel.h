/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* The few fields of kernel structures that we look at. Offsets are relocated when the object is loaded. */
#ifndef CULVERT_KERNEL_H
#define CULVERT_KERNEL_H

#include "bpf.h"

#define PF_KTHREAD 0x00200000

struct file {
	void *private_data;
} __core;

struct net {
	__u64 net_cookie;
} __core;

struct sock_common {
	unsigned short skc_family;
	struct {
		struct net *net;
	} skc_net;
} __core;

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
} __core;

struct socket {
	struct file *file;
	struct sock *sk;
} __core;

struct rtable {
	__u16 rt_type;
} __core;

struct rtnl_link_ops {
	const char *kind;
} __core;

struct net_device {
	char name[16];
	int ifindex;
	unsigned short type;
	const struct rtnl_link_ops *rtnl_link_ops;
	struct {
		struct net *net;
	} nd_net;
} __core;

struct dst_entry {
	struct net_device *dev;
} __core;

struct sk_buff {
	struct net_device *dev;
	unsigned int len;
	__u32 mark;
	int skb_iif;
	__u16 network_header;
	unsigned char *head;
	unsigned long _skb_refdst;
	struct sock *sk;
	__u8 from_ingress : 1;
} __core;

struct cred {
	struct {
		__u32 val;
	} uid;
} __core;

struct task_struct {
	unsigned int flags;
	int tgid;
	const struct cred *cred;
	struct task_struct *group_leader;
	char comm[16];
} __core;

struct nf_hook_state {
	__u8 pf;
	struct net_device *out;
} __core;

struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
} __core;

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
} __core;

#endif
