package loader

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// privileged explains a refusal by what the process lacks. Other errors, and nil, go through.
func privileged(err error) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return err
	}
	lacks := lacking()
	var refused *ebpf.VerifierError
	switch {
	case lacks == "" && errors.As(err, &refused):
		return err // the kernel read the program: this is no question of rights
	case lacks == "":
		lacks = "nothing that shows: a container or a security module may forbid it"
	}
	return fmt.Errorf("%w (lacks %s): %w", ErrPrivilege, lacks, err)
}

// lacking names the capabilities that the witness needs and the thread has not.
func lacking() string {
	var missing []string
	admin := capable(unix.CAP_SYS_ADMIN)
	if !admin && !capable(unix.CAP_BPF) {
		missing = append(missing, "CAP_BPF")
	}
	if !admin && !capable(unix.CAP_PERFMON) {
		missing = append(missing, "CAP_PERFMON")
	}
	if !capable(unix.CAP_NET_ADMIN) {
		missing = append(missing, "CAP_NET_ADMIN")
	}
	if !admin {
		missing = append(missing, "CAP_SYS_ADMIN for mounting a guard's file system")
	}
	return strings.Join(missing, ", ")
}

func capable(bit int) bool {
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if unix.Capget(&header, &data[0]) != nil {
		return false
	}
	return data[bit/32].Effective&(1<<(bit%32)) != 0
}
