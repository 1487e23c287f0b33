package pfroute

import (
	"encoding/binary"
	"time"
)

// Every macOS is little-endian.
var native = binary.LittleEndian

// struct rt_msghdr, bsd/net/route.h. golang.org/x/net/route parses the same
// bytes, but on darwin only, and takes rtm_use for rtm_errno.
const (
	offLen     = 0  // u_short rtm_msglen
	offVersion = 2  // u_char rtm_version
	offType    = 3  // u_char rtm_type
	offIndex   = 4  // u_short rtm_index
	offFlags   = 8  // int rtm_flags
	offAddrs   = 12 // int rtm_addrs
	offPID     = 16 // pid_t rtm_pid
	offSeq     = 20 // int rtm_seq
	offErrno   = 24 // int rtm_errno
	offInits   = 32 // u_int32_t rtm_inits
	offLocks   = 36 // struct rt_metrics rtm_rmx: rmx_locks
	offMTU     = 40
	offHops    = 44
	offExpire  = 48 // int32_t, calendar time
	headerLen  = 92
)

// metrics are the offsets of the fields of struct rt_metrics and their RTV_ bits.
var metrics = [...]struct {
	at  int
	bit uint32
}{
	{offMTU, 0x1}, {offHops, rtvHops}, {offExpire, rtvExpire}, {52, 0x8}, // recvpipe
	{56, 0x10}, {60, 0x20}, {64, 0x40}, {68, 0x80}, // sendpipe, ssthresh, rtt, rttvar
}

const (
	rtvHops   = 0x2
	rtvExpire = 0x4
)

// Interface messages: struct if_msghdr, if_msghdr2 and ifa_msghdr, bsd/net/if.h.
const (
	offIfAddrs  = 4
	offIfFlags  = 8
	offIfIndex  = 12
	ifHeaderLen = 112 // of if_msghdr
	ifaHeader   = 20  // of ifa_msghdr
	ifUp        = 0x1
	ifLoopback  = 0x8
	ifPoint     = 0x10
)

const rtmVersion = 5

// Message types.
const (
	rtmAdd       = 0x1
	rtmDelete    = 0x2
	rtmChange    = 0x3
	rtmGet       = 0x4
	rtmLosing    = 0x5
	rtmRedirect  = 0x6
	rtmMiss      = 0x7
	rtmLock      = 0x8
	rtmResolve   = 0xb
	rtmNewAddr   = 0xc
	rtmDelAddr   = 0xd
	rtmIfInfo    = 0xe
	rtmNewMAddr  = 0xf
	rtmDelMAddr  = 0x10
	rtmIfInfo2   = 0x12
	rtmNewMAddr2 = 0x13
)

// Route flags.
const (
	flagUp        = 0x1
	flagGateway   = 0x2
	flagHost      = 0x4
	flagReject    = 0x8
	flagDynamic   = 0x10
	flagCloning   = 0x100
	flagLLInfo    = 0x400
	flagStatic    = 0x800
	flagBlackhole = 0x1000
	flagProto2    = 0x4000
	flagProto1    = 0x8000
	flagPRCloning = 0x10000
	flagWasCloned = 0x20000
	flagPinned    = 0x100000
	flagLocal     = 0x200000
	flagIfScope   = 0x1000000
	flagProxy     = 0x8000000
)

// replayed are the flags that a route is given back with. The others are the
// kernel's to set (RTF_UP by itself); it refuses RTF_PROXY.
const replayed = flagUp | flagGateway | flagHost | flagReject | flagDynamic | flagCloning | flagStatic |
	flagBlackhole | flagProto1 | flagProto2 | flagPRCloning | flagPinned

// noEntry are the flags of what is no entry of the table that is enforced.
const noEntry = flagIfScope | flagWasCloned | flagLocal | flagProxy

// Indices of the addresses in a message, in their order.
const (
	rtaDst = iota
	rtaGateway
	rtaNetmask
	rtaGenmask
	rtaIfp
	rtaIfa
	rtaAuthor
	rtaBrd
	rtaMax
)

// OwnHops is the hop count (rmx_hopcount) that, with RTF_PROTO1, marks
// culvert's own routes.
const OwnHops = 117

// The values of plan.Route's Protocol. macOS records no protocol: they say what
// the flags tell of a route's origin.
const (
	ProtoOther    uint8 = iota
	ProtoKernel         // follows from an address
	ProtoStatic         // RTF_STATIC: added by a program or a person
	ProtoRedirect       // RTF_DYNAMIC: learnt from an ICMP redirect
	ProtoOwn            // culvert's
)

var protocolNames = [...]string{"other", "kernel", "static", "redirect", "culvert"}

// ProtocolName returns the word for a route's Protocol.
func ProtocolName(p uint8) string {
	if int(p) < len(protocolNames) {
		return protocolNames[p]
	}
	return protocolNames[ProtoOther]
}

// pollEvery is how often the table is read with nothing having been announced.
const pollEvery = 5 * time.Second
