#!/usr/bin/env bash
# Makes dist/culvert-VERSION-OS-ARCH.tar.gz (zip for Windows) and SHA256SUMS.
# Usage, from the top of the tree: dist.sh VERSION OS/ARCH…
set -euo pipefail
version=$1
shift
export TZ=UTC CGO_ENABLED=0
when=$(git log -1 --format=%ct)
out=$PWD/dist
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$out"

for target in "$@"; do
	os=${target%/*} arch=${target#*/}
	name=culvert-$version-$os-$arch
	dir=$stage/$name
	program=culvert
	[ "$os" != windows ] || program=culvert.exe
	mkdir -p "$dir"
	GOOS=$os GOARCH=$arch go build -trimpath -buildvcs=false \
		-ldflags "-s -w -buildid= -X main.tag=$version" -o "$dir/$program" ./cmd/culvert
	cp README.md LICENSE "$dir/"
	cp cmd/culvert/docs/*.md "$dir/"
	[ "$os" != linux ] || cp -r cmd/culvert/packaging "$dir/"
	rm -f "$dir/packaging/dist.sh"
	find "$dir" -type d -exec chmod 755 {} +
	find "$dir" -type f -exec chmod 644 {} +
	chmod 755 "$dir/$program"
	find "$dir" -exec touch -d "@$when" {} +
	if [ "$os" = windows ]; then
		rm -f "$out/$name.zip"
		(cd "$stage" && find "$name" | LC_ALL=C sort | zip -q -X "$out/$name.zip" -@)
	else
		tar -C "$stage" --sort=name --mtime="@$when" --owner=0 --group=0 --numeric-owner --format=ustar -cf - "$name" |
			gzip -9n >"$out/$name.tar.gz"
	fi
	echo "dist/$name"
done
(cd "$out" && LC_ALL=C sha256sum culvert-"$version"-* >SHA256SUMS)
