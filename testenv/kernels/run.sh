#!/usr/bin/env bash
# Runs the kernel tests on Debian's kernels, each in a virtual machine without
# KVM, and prints what passed, failed and was skipped on which. As root on
# Debian. Arguments choose suites; KERNELS_TESTS chooses lines of the list below
# by a pattern. What is fetched and built stays in .cache/kernels.
set -euo pipefail
cd "$(dirname "$0")/../.."

here=testenv/kernels
cache=$PWD/.cache/kernels
bound=2400 # seconds, for one kernel
suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(bullseye bookworm trixie trixie-backports)

# What runs in the machine, with the flags of each: one test at a time where many
# daemons start, and fewer random tables and kills than usual, because an
# emulated processor is several times slower. Left out of e2e, for their time, are
# floods, full tunnels, verdicts on what is kept, restarts and hooks.
# TestLayers reads the sources, which are not there. The packages that are not
# here ask the kernel nothing.
tests() {
	grep -E "${KERNELS_TESTS:-.}" <<-'END'
		loader
		enforce -test.skip=Layers
		enforce/rtnl
		testenv -test.parallel=2
		cmd/culvert/internal/e2e -test.parallel=1 -test.run=Scripts|RouterAdvertisement|TunnelVision$
		cmd/culvert/internal/e2eleak -test.parallel=1
		cmd/culvert/internal/promise -tables=20 -attacks=2 -kills=6 -binary=10
	END
}

# What the machine has beside the tests: their programs, and these.
base=(bash dash coreutils grep sed kmod util-linux debianutils bsdutils hostname dhcpcd-base)

# A module's dependencies come along. What is built in, or unknown, is no loss.
modules="veth tun dummy macvlan ipvlan 8021q bridge bonding vrf wireguard overlay sch_ingress cls_bpf act_gact
	sch_fq_codel nf_tables nft_chain_nat nft_masq nft_compat nf_nat nf_conntrack af_packet_diag ip_gre seg6 mpls_iptunnel
	ifb act_mirred cls_u32 vxlan"

say() { echo "kernels: $*" >&2; }

install() {
	local missing=() p
	for p in qemu-system-x86 cpio "${base[@]}" $(cat testenv/packages.txt); do
		dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	say "installing ${missing[*]}"
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# mirror is where this machine's own Debian comes from.
mirror() {
	apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Label: Debian' | head -n 1 | grep . ||
		{ say "no Debian mirror is known to apt: run apt-get update, or add one to /etc/apt"; return 1; }
}

# private runs an apt program on one suite alone, away from the machine's state.
private() {
	local suite=$1 program=$2 dir=$cache/apt/$1
	shift 2
	mkdir -p "$dir/lists/partial" "$dir/archives/partial"
	"$program" -qq -o "Dir::State=$dir" -o "Dir::State::status=/dev/null" -o "Dir::Cache=$dir" \
		-o "Dir::Etc::sourcelist=$dir/sources.list" -o "Dir::Etc::sourceparts=/dev/null" \
		-o "Dir::Etc::preferencesparts=/dev/null" -o APT::Architecture=amd64 -o APT::Sandbox::User=root "$@"
}

# fetch unpacks the newest kernel of a suite for virtual machines.
fetch() {
	local suite=$1 dir=$cache/apt/$1 root=$cache/$1 names
	[ ! -e "$root/complete" ] || return 0
	mkdir -p "$dir" && rm -rf "$root" && mkdir -p "$root"
	echo "deb $(mirror) $suite main" >"$dir/sources.list"
	private "$suite" apt-get update
	names=$(private "$suite" apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
		--no-replaces --no-enhances linux-image-cloud-amd64 | grep -oE '^linux-(image|binary|modules|base)-[0-9].*' | sort -u)
	say "$suite: fetching" $names
	(cd "$root" && private "$suite" apt-get download $names)
	for deb in "$root"/*.deb; do
		dpkg-deb -x "$deb" "$root"
	done
	rm "$root"/*.deb
	[ -e "$root/lib" ] || ln -s usr/lib "$root/lib"
	touch "$root/complete"
}

# userland builds what is the same for all kernels.
userland() {
	local root=$cache/userland dir
	rm -rf "$root" && mkdir -p "$root"/{bb,dev,proc,sys,run,tmp,root,var/lib/dhcp{,cd},etc,t}
	dpkg -L $(cat testenv/packages.txt) "${base[@]}" | grep -E '^(/usr)?/(s?bin|lib)/|^/etc/' | sort -u |
		while read -r f; do [ -d "$f" ] || echo "$f"; done | cpio -pdmL --quiet "$root"
	{ find "$root" -type f \( -perm -100 -o -name '*.so*' \) -exec ldd {} + 2>/dev/null || true; } |
		grep -oE '(=> |^\s)/[^ ]+' | grep -oE '/.*' | sort -u | cpio -pdmL --quiet "$root"
	cp /etc/passwd /etc/group "$root/etc"
	touch "$root"/etc/{fstab,hosts,resolv.conf}
	cp "$root/bin/busybox" "$root/bb/busybox"
	CGO_ENABLED=0 go build -ldflags '-s -w' -o "$root/bin/culvert" ./cmd/culvert
	cp "$here/init.sh" "$root/init"
	tests >"$root/tests"
	while read -r dir _; do
		mkdir -p "$root/t/$dir"
		CGO_ENABLED=0 go test -c -ldflags '-s -w' -o "$root/t/$dir/run" "./$dir"
		[ ! -d "$dir/testdata" ] || cp -r "$dir/testdata" "$root/t/$dir/"
	done <"$root/tests"
	pack "$root" "$cache/userland.cpio"
}

pack() { (cd "$1" && find . | cpio -o -H newc -R 0:0 --quiet) >"$2"; }

# initramfs adds a kernel's modules.
initramfs() {
	local suite=$1 root=$cache/$1 version extra=$cache/$1-modules
	version=$(basename "$root"/lib/modules/*)
	rm -rf "$extra" && mkdir -p "$extra/lib/modules/$version"
	find "$root/lib/modules/$version/" -maxdepth 1 -name 'modules.[bo]*' -exec cp {} "$extra/lib/modules/$version" \;
	depmod -b "$root" "$version"
	for m in $modules; do
		modprobe -d "$root" -S "$version" --show-depends "$m" 2>/dev/null | sed -n 's/^insmod //p' || true
	done | awk '{ print $1 }' | sort -u | sed "s|^$root/||" | (cd "$root" && cpio -pdm --quiet "$extra")
	depmod -b "$extra" "$version"
	pack "$extra" "$extra.cpio"
	cat "$cache/userland.cpio" "$extra.cpio" >"$cache/$suite.initramfs"
}

# boot runs everything on one kernel; what the tests say goes to a port of its own.
boot() {
	local suite=$1 kernel
	kernel=$(find "$cache/$suite" -name 'vmlinuz*' -type f)
	rm -f "$cache/$suite.log" "$cache/$suite.console"
	timeout --foreground --kill-after=5 "$bound" qemu-system-x86_64 -nodefaults -no-reboot -m 3072 -smp 2 \
		-accel tcg,thread=multi -cpu max -display none -kernel "$kernel" -initrd "$cache/$suite.initramfs" \
		-append "console=ttyS0 panic=-1 quiet" \
		-serial "file:$cache/$suite.console" -serial "file:$cache/$suite.log" </dev/null ||
		say "$suite: the machine did not end by itself; see $cache/$suite.console"
}

install
userland
for suite in "${suites[@]}"; do
	fetch "$suite"
	initramfs "$suite"
	say "$suite: running"
	boot "$suite"
done
logs=("${suites[@]/#/$cache/}")
awk -v "want=$((${#suites[@]} * $(tests | wc -l)))" -f "$here/report.awk" "${logs[@]/%/.log}"
