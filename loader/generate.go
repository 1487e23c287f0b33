package loader

// The objects are committed: building culvert needs no clang. They are byte for byte the same for this clang, wherever the
// tree lies; another clang gives others. leak's types are the package's own, so they are generated for every system; sender
// and early are Linux's. Big-endian systems have the types without the objects: Open says so.

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-14 -target bpfel -type class -type action -type reason -type origin -type place -type from -type prefix4 -type prefix6 -type gate -type rule -type sample -type device -type vlan_key leak ../bpf/leak.c -- -O2 -g -Wall -Werror -mcpu=v3
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-14 -target bpfel -tags linux -no-global-types sender ../bpf/sender.c -- -O2 -g -Wall -Werror -mcpu=v3
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-14 -target bpfel -tags linux -no-global-types early ../bpf/early.c -- -O2 -g -Wall -Werror -mcpu=v3
//go:generate ./generate_none.sh leak_bpfel.go sender_bpfel.go early_bpfel.go bench_bpfel_test.go
