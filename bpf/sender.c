// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/*
 * sender: notes on each socket whose it is, for leak to read when a packet of it leaves.
 *
 * The cgroup hooks see sockets as they are made, bound, connected and sent by; the iterator walks once over those that are
 * older. Hooks on the root cgroup see the whole machine, so all but one network namespace are passed over.
 */
#include "culvert.h"

/* ---- constants ---- */

#define ALLOW 1

/* The namespace to look at, by its cookie; 0 where the kernel gives no cookie to user space: all. Set before loading. */
const volatile __u64 netns = 0;

char __license[] SEC("license") = "Dual BSD/GPL";

/* ---- helpers ---- */

/* note writes the running process on sk. It never forbids anything. */
static __always_inline int note(void *ctx, void *sk)
{
	struct owner now = {.origin = ORIGIN_SOCKET};
	struct owner *o;

	if (netns && bpf_get_netns_cookie(ctx) != netns)
		return ALLOW; /* of another namespace */
	if (!sk || !running(&now))
		return ALLOW; /* the kernel's own */
	o = bpf_sk_storage_get(&owners, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (o)
		*o = now;
	return ALLOW;
}

/* ours says whether the iterator should look at sk. */
static __always_inline bool ours(struct sock *sk)
{
	unsigned short family = sk->__sk_common.skc_family;

	if (family != AF_INET && family != AF_INET6)
		return false;
	return !netns || sk->__sk_common.skc_net.net->net_cookie == netns;
}

/* ---- programs ---- */

SEC("cgroup/sock_create")
int sender_create(struct bpf_sock *sk)
{
	return note(sk, sk);
}

/* Binding shows what the listener of an MPTCP socket is, which the kernel made for it. */
SEC("cgroup/post_bind4")
int sender_bind4(struct bpf_sock *sk)
{
	return note(sk, sk);
}

SEC("cgroup/post_bind6")
int sender_bind6(struct bpf_sock *sk)
{
	return note(sk, sk);
}

SEC("cgroup/connect4")
int sender_connect4(struct bpf_sock_addr *ctx)
{
	return note(ctx, ctx->sk);
}

SEC("cgroup/connect6")
int sender_connect6(struct bpf_sock_addr *ctx)
{
	return note(ctx, ctx->sk);
}

SEC("cgroup/sendmsg4")
int sender_sendmsg4(struct bpf_sock_addr *ctx)
{
	return note(ctx, ctx->sk);
}

SEC("cgroup/sendmsg6")
int sender_sendmsg6(struct bpf_sock_addr *ctx)
{
	return note(ctx, ctx->sk);
}

SEC("iter/task_file")
int sender_seed(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct owner *o;
	struct sock *sk;

	if (!task || !file)
		return 0; /* the end */
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0; /* no socket */
	sk = socket->sk;
	if (!sk || !ours(sk))
		return 0; /* of another family or namespace */
	if (bpf_sk_storage_get(&owners, sk, NULL, 0))
		return 0; /* a hook, or another holder of the file, was first */
	o = bpf_sk_storage_get(&owners, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!o)
		return 0; /* no memory */
	o->origin = ORIGIN_SEED;
	o->pid = task->tgid;
	o->uid = task->cred->uid.val;
	bpf_probe_read_kernel(o->comm, sizeof(o->comm), task->group_leader->comm);
	return 0;
}
