#!/bin/sh
# Makes a Debian root into a machine that runs cases at each boot. mmdebstrap calls it with the
# root's folder, once all packages are there. The image's name holds this file's hash.
set -eu
root=$1

# What would touch the network by itself, or only costs time. Cases start what they need.
for unit in NetworkManager NetworkManager-wait-online ModemManager wpa_supplicant ocserv \
	strongswan openvpn dnsmasq ntpsec systemd-networkd systemd-timesyncd; do
	chroot "$root" systemctl -q disable "$unit" 2>/dev/null || true
done
chroot "$root" systemctl -q mask ocserv.socket apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
	e2scrub_all.timer e2scrub_reap.service fstrim.timer man-db.timer getty@tty1.service serial-getty@ttyS0.service

echo vm >"$root/etc/hostname"
echo '127.0.0.1 localhost vm' >"$root/etc/hosts"
printf '/dev/vda / ext4 defaults 0 0\n/dev/vdb /payload ext4 ro 0 0\n' >"$root/etc/fstab"
mkdir -p "$root/payload"
cat >"$root/etc/systemd/system/vm-cases.service" <<'UNIT'
[Unit]
Description=the cases of make vm
After=multi-user.target
RequiresMountsFor=/payload

[Service]
Type=exec
ExecStart=/bin/sh /payload/start.sh
StandardOutput=journal+console
KillMode=process
TimeoutStopSec=10
UNIT
mkdir -p "$root/etc/systemd/system/default.target.wants"
ln -s ../vm-cases.service "$root/etc/systemd/system/default.target.wants/"

# Only the drivers that the machine has: a small initramfs boots sooner.
sed -i 's/^MODULES=.*/MODULES=list/' "$root/etc/initramfs-tools/initramfs.conf"
printf 'virtio_pci\nvirtio_blk\next4\n' >>"$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u >/dev/null
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/var/lib/apt/lists/*
