#!/bin/sh
# The first process of the virtual machine: runs the tests of /tests, one after
# the other, and says on the second serial port how each went.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/bb HOME=/root CULVERT_BIN=/bin/culvert
/bb/busybox --install -s /bb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/net
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
chmod 1777 /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
modprobe tun
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
ip link set lo up
ln -s /proc/self/fd /dev/fd

exec >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw -echo
echo "== kernel $(uname -r)"
while read -r dir flags; do
	echo "== package $dir"
	begin=$(cut -d. -f1 /proc/uptime)
	cd "/t/$dir" || continue
	./run -test.v -test.timeout=20m $flags </dev/null
	echo "== ended $? after $(($(cut -d. -f1 /proc/uptime) - begin))"
done </tests
echo "== end"
sleep 1
poweroff -f
