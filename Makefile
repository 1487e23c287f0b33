# culvert: see README.md. As root on Debian or Ubuntu, with Go and make:
#   make demo    the main job for real, in network namespaces
#   make test    everything, kernel tests included
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -buildid= -X main.tag=$(VERSION)
BUILD   := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
TOOLS   := gcc libc6-dev clang-19 llvm-14 zip
VM      := qemu-system-x86 mmdebstrap e2fsprogs debian-archive-keyring
OTHERS  := darwin/amd64 darwin/arm64 windows/amd64 windows/arm64

# Where everything must build: the systems that culvert is for, and a machine of the other byte order.
CROSS   := $(OTHERS) linux/s390x

CHURN   ?= 1h
WORLD   ?=
STATES  ?= 25000

export CULVERT_BIN := $(CURDIR)/bin/culvert

.PHONY: demo test build deps vm-deps lint cross kernel model kernels churn vm vm-quick generate generated bench vuln dist dist-check clean

demo: deps build
	go run ./testenv/demo

# The checks that fail fastest come first.
test: deps build lint generated cross vm-quick kernel vuln

build:
	mkdir -p bin
	$(BUILD) -o bin/culvert ./cmd/culvert

# What the tests, the demo and the generator run, from Debian's packages.
deps: PACKAGES = $(TOOLS) $$(cat testenv/packages.txt)
vm-deps: PACKAGES = $(VM)
deps vm-deps:
	@missing=(); \
	for p in $(PACKAGES); do \
		dpkg-query -W -f='$${Status}' "$$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$$p"); \
	done; \
	[ $${#missing[@]} -eq 0 ] && exit 0; \
	echo "installing: $${missing[*]}"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null

lint:
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "gofmt would change: $$out"; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go vet -tags vm ./testenv/vm/...
	go tool staticcheck -tags vm ./testenv/vm/...

# Every package and every test must build, vet and be clean on the other systems.
cross:
	go build -o .cache/staticcheck honnef.co/go/tools/cmd/staticcheck
	@for t in $(CROSS); do \
		echo "cross $$t"; \
		export GOOS=$${t%/*} GOARCH=$${t#*/} CGO_ENABLED=0; \
		go build ./...; \
		go vet ./...; \
		.cache/staticcheck ./...; \
		go test -c -ldflags '-s -w' -o .cache/cross/ ./... >/dev/null; \
	done
	@rm -rf .cache/cross

# All tests, those on the kernel too: a skip is a failure. The witness's floods
# and the hundreds of random tables want the machine's speed and each a turn of
# their own; what is concurrent in the witness runs under the race detector by
# name, and the enforcer everywhere else.
kernel: build
	CULVERT_NO_SKIP=1 go test -count 1 -race -timeout 20m $$(go list ./... | grep -v -e '/loader$$' -e '/promise$$')
	go test -count 1 -timeout 20m -run '^TestModel$$' ./enforce -states 2500
	CULVERT_NO_SKIP=1 go test -count 1 -timeout 20m ./cmd/culvert/internal/promise
	CULVERT_NO_SKIP=1 go test -count 1 -timeout 20m ./loader
	CULVERT_NO_SKIP=1 go test -count 1 -race -timeout 20m -run 'Samples|Guard|NewInterfaces|Tunnels|Layout|Oracle' ./loader

# Every order of what may happen in small worlds, with culvert and without: more than
# half a million states, of which "make test" judges the nearest. WORLD=slot,addr takes
# those, TRACE="open:s8 ; add:P9w" shows one way through such a world step by step.
model:
	go test -count 1 -timeout 3h -v -run '^TestModel$$' ./enforce -world '$(WORLD)' -states $(STATES) -args -trace '$(TRACE)'

# The kernel tests on Debian's older and newer kernels, under QEMU: about an
# hour. testenv/kernels/run.sh takes single suites.
kernels:
	testenv/kernels/run.sh

# The program under systemd, with real VPN programs under their own units, in a
# Debian machine that QEMU emulates: about five minutes, and the first time some
# more, for its image. vm-quick is the part that make test runs, with a smaller
# image. CASES=TestUnit takes those that match.
vm: build vm-deps
	go run ./testenv/vm -run '$(or $(CASES),.)'

vm-quick: build vm-deps
	go run ./testenv/vm -quick -run '$(or $(CASES),.)'

# What "make test" does for seconds and with hundreds, for an hour and with a
# thousand: churn around one daemon, and interfaces that come and go.
churn: build
	CULVERT_NO_SKIP=1 go test -count 1 -timeout 90m -v -run '^TestManyInterfaces$$' ./cmd/culvert/internal/e2e -pairs 500
	CULVERT_NO_SKIP=1 go test -count 1 -timeout 90m -v -run '^TestChurn$$' ./cmd/culvert/internal/e2e -churn $(CHURN)

generate:
	go generate ./loader

# The committed objects are what the committed sources make.
generated: generate
	@changed=$$(git status --porcelain -- loader); \
	[ -z "$$changed" ] || { echo "make generate changed:"; echo "$$changed"; git --no-pager diff --stat -- loader; exit 1; }

bench: build
	go test -run '^$$' -bench Held -timeout 10m ./enforce
	go test -run '^$$' -bench . -benchtime 1x -timeout 30m ./enforce/rtnl ./loader
	CULVERT_BIN=$(CURDIR)/bin/culvert CULVERT_NO_SKIP=1 go test -count 1 -timeout 10m -v -run '^TestManyThatStood$$' ./cmd/culvert/internal/e2e -stood 200000

# The vulnerability database by its own address, else as its Go module.
vuln:
	@if curl -fsS -m 10 -o /dev/null https://vuln.go.dev/index/db.json 2>/dev/null; then \
		go tool govulncheck ./...; \
	elif dir=$$(cd / && go mod download -json golang.org/x/vulndb@latest 2>/dev/null | sed -n 's/.*"Dir": "\(.*\)",/\1/p') && [ -n "$$dir" ]; then \
		db=.cache/vulndb-$${dir##*@}; \
		[ -d "$$db" ] || go run golang.org/x/vulndb/cmd/indexdb@$${dir##*@} -vulns "$$dir/data/osv" -out "$$db"; \
		go tool govulncheck -db "file://$$PWD/$$db" ./...; \
	else \
		echo "govulncheck: skipped, its database cannot be reached"; \
	fi

# One archive per system and architecture. The same commit gives the same bytes:
# times are the commit's, names are sorted, owners are nobody in particular.
dist:
	cmd/culvert/packaging/dist.sh $(VERSION) linux/amd64 linux/arm64 $(OTHERS)

# Builds everything twice and compares.
dist-check:
	mkdir -p .cache
	rm -rf dist; $(MAKE) --no-print-directory dist; mv dist/SHA256SUMS .cache/first.sums
	rm -rf dist; $(MAKE) --no-print-directory dist; cmp dist/SHA256SUMS .cache/first.sums
	@echo "the same bytes twice"

clean:
	rm -rf bin dist .cache
