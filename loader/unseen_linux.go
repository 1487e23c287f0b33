package loader

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// lookUnseen notes what on this host may send or change packets without the programs seeing it.
func (w *Witness) lookUnseen(links []netlink.Link) {
	var list []string
	for _, l := range links {
		a := l.Attrs()
		if a.Xdp != nil && a.Xdp.Attached {
			list = append(list, fmt.Sprintf("XDP program %d on %s may send on what it receives, below the witness", a.Xdp.ProgId, a.Name))
		}
	}
	chains, err := egressChains()
	if err != nil {
		w.log.Debug("list nft egress chains", "err", err)
	}
	for _, c := range chains {
		list = append(list, fmt.Sprintf("nft chain %q of table netdev %q is before the witness on the way out of %s, and may rewrite or redirect packets",
			c.name, c.table, cmp.Or(strings.Join(c.devices, ", "), "an interface")))
	}
	list = append(list, w.wrapping.look(w.opts.Recheck)...)
	slices.Sort(list)
	if !slices.Equal(list, w.status.Unseen) && len(list) > 0 {
		w.log.Info("the witness may not see everything", "by", list)
	}
	w.status.Unseen = list
}

// egressChain is a chain that nftables hooks before the tc egress hook.
type egressChain struct {
	table, name string
	devices     []string
}

// What nftables calls these things in its messages (linux/netfilter/nf_tables.h).
const (
	nftGetChain     = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN
	netdevEgress    = 1 // NF_NETDEV_EGRESS
	sizeofNfgenmsg  = 4
	nftaHookDevs    = 4      // NFTA_HOOK_DEVS
	nftaDeviceName  = 1      // NFTA_DEVICE_NAME
	nftaTypeMask    = 0x3fff // NLA_TYPE_MASK
	nfgenmsgVersion = 0
)

// egressChains lists those of the thread's network namespace. A kernel without nftables has none.
func egressChains() ([]egressChain, error) {
	req := nl.NewNetlinkRequest(nftGetChain, unix.NLM_F_DUMP)
	req.AddRawData([]byte{unix.NFPROTO_NETDEV, nfgenmsgVersion, 0, 0})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	var out []egressChain
	for _, m := range msgs {
		if len(m) < sizeofNfgenmsg {
			continue
		}
		if c, ok := parseChain(m[sizeofNfgenmsg:]); ok {
			out = append(out, c)
		}
	}
	return out, err
}

func parseChain(b []byte) (c egressChain, egress bool) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return c, false
	}
	for _, a := range attrs {
		switch a.Attr.Type & nftaTypeMask {
		case unix.NFTA_CHAIN_TABLE:
			c.table = unix.ByteSliceToString(a.Value)
		case unix.NFTA_CHAIN_NAME:
			c.name = unix.ByteSliceToString(a.Value)
		case unix.NFTA_CHAIN_HOOK:
			egress = c.parseHook(a.Value)
		}
	}
	return c, egress
}

// parseHook reads where a chain is hooked, and reports whether that is the way out.
func (c *egressChain) parseHook(b []byte) (egress bool) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return false
	}
	for _, a := range attrs {
		switch a.Attr.Type & nftaTypeMask {
		case unix.NFTA_HOOK_HOOKNUM:
			egress = len(a.Value) == 4 && binary.BigEndian.Uint32(a.Value) == netdevEgress
		case unix.NFTA_HOOK_DEV:
			c.devices = append(c.devices, unix.ByteSliceToString(a.Value))
		case nftaHookDevs:
			c.devices = append(c.devices, deviceNames(a.Value)...)
		}
	}
	slices.Sort(c.devices)
	c.devices = slices.Compact(c.devices)
	return egress
}

func deviceNames(b []byte) (names []string) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil
	}
	for _, a := range attrs {
		if a.Attr.Type&nftaTypeMask == nftaDeviceName {
			names = append(names, unix.ByteSliceToString(a.Value))
		}
	}
	return names
}
