// SPDX-License-Identifier: Apache-2.0
// The floor that culvert's latency is held against: the least that a program
// can do between hearing of a route and deleting it. One epoll loop, one
// multicast socket, one address comparison, one delete; no policy, no record.
//
//	floor IFINDEX    deletes IPv4 /32 routes inside 10.0.0.0/8 by that interface
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static int netlink_socket(unsigned groups)
{
	struct sockaddr_nl sa = { .nl_family = AF_NETLINK, .nl_groups = groups };
	int size = 64 << 20, fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		perror("netlink");
		exit(1);
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	return fd;
}

static int concerns(struct nlmsghdr *h, unsigned ifindex)
{
	struct rtmsg *rtm = NLMSG_DATA(h);
	int len = RTM_PAYLOAD(h), inside = 0, out = 0;

	if (h->nlmsg_type != RTM_NEWROUTE || rtm->rtm_table != RT_TABLE_MAIN || rtm->rtm_dst_len != 32)
		return 0;
	for (struct rtattr *a = RTM_RTA(rtm); RTA_OK(a, len); a = RTA_NEXT(a, len)) {
		if (a->rta_type == RTA_DST)
			inside = *(unsigned char *)RTA_DATA(a) == 10;
		if (a->rta_type == RTA_OIF)
			out = *(unsigned *)RTA_DATA(a) == ifindex;
	}
	return inside && out;
}

int main(int argc, char **argv)
{
	static char in[65536], ack[4096];
	unsigned ifindex = argc > 1 ? atoi(argv[1]) : 0;
	int hear = netlink_socket(RTMGRP_IPV4_ROUTE), tell = netlink_socket(0), ep = epoll_create1(0);
	struct epoll_event ev = { .events = EPOLLIN };

	epoll_ctl(ep, EPOLL_CTL_ADD, hear, &ev);
	puts("ready");
	fflush(stdout);
	while (epoll_wait(ep, &ev, 1, -1) >= 0) {
		int n = recv(hear, in, sizeof(in), 0);

		for (struct nlmsghdr *h = (void *)in; n > 0 && NLMSG_OK(h, n); h = NLMSG_NEXT(h, n)) {
			if (!concerns(h, ifindex))
				continue;
			h->nlmsg_type = RTM_DELROUTE;
			h->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
			h->nlmsg_pid = 0;
			send(tell, h, h->nlmsg_len, 0);
			recv(tell, ack, sizeof(ack), 0);
		}
	}
	return 0;
}
