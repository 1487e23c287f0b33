#!/bin/sh
# Runs in the machine at each boot: the program and its unit are put where a package would put them, then
# each case runs in a process of its own and reports on the second serial port. A case that hangs or
# crashes costs itself alone; one that takes the machine down is told at the next boot. A case that
# wants a reboot writes $state/stage, and goes on after it.
state=/var/lib/vm-cases
exec 3>/dev/ttyS1
say() { echo "vm: $*" >&3; }

stty -F /dev/ttyS1 raw
if [ ! -e "$state" ]; then
	mkdir -p "$state" /etc/culvert
	cp /payload/cases "$state/cases"
	cp /payload/culvert /usr/bin/culvert
	cp /payload/units/* /lib/systemd/system/
	systemctl daemon-reload
fi
read -r up _ </proc/uptime
say "up $up $(uname -r), systemd $(systemctl --version | sed -n '1s/.*(\(.*\)).*/\1/p')"
if [ -s "$state/running" ] && [ ! -s "$state/stage" ]; then
	say "lost $(cat "$state/running")"
	sed -i 1d "$state/cases"
fi
while [ -s "$state/cases" ]; do
	case=$(sed -n 1p "$state/cases")
	echo "$case" >"$state/running"
	say "case $case"
	timeout -k 5 "$(cat /payload/bound)" /payload/guest -test.v -test.run "^$case\$" >&3 2>&1 </dev/null || [ $? -ne 124 ] ||
		say "late $case"
	if [ -s "$state/stage" ] && [ ! -e /run/vm-cases.stage ]; then
		say "reboot $case"
		sync
		systemctl reboot
		exit 0
	fi
	rm -f "$state/stage" /run/vm-cases.stage
	sed -i 1d "$state/cases"
	: >"$state/running"
done
say "end"
sync
systemctl poweroff --force --force
