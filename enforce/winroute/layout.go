package winroute

import (
	"encoding/binary"
	"strconv"
	"syscall"
	"time"
)

// Every Windows is little-endian.
var native = binary.LittleEndian

// MIB_IPFORWARD_ROW2, netioapi.h. The offsets of all layouts here are the
// compiler's for the mingw-w64 headers.
const (
	offLUID      = 0  // NET_LUID InterfaceLuid
	offIndex     = 8  // NET_IFINDEX InterfaceIndex
	offDst       = 12 // IP_ADDRESS_PREFIX DestinationPrefix: SOCKADDR_INET Prefix
	offDstLen    = 40 // UINT8 PrefixLength
	offNextHop   = 44 // SOCKADDR_INET NextHop
	offValid     = 76 // ULONG ValidLifetime
	offPreferred = 80 // ULONG PreferredLifetime
	offMetric    = 84 // ULONG Metric
	offProtocol  = 88 // NL_ROUTE_PROTOCOL Protocol
	offAge       = 96 // ULONG Age, NL_ROUTE_ORIGIN Origin
	rowLen       = 104
)

// MIB_IPINTERFACE_ROW. Its length is 168: NL_INTERFACE_OFFLOAD_ROD is a byte,
// not the ULONG of golang.org/x/sys/windows, whose rows are too long for a table.
const (
	offIfaceFamily = 0 // ADDRESS_FAMILY Family
	offIfaceLUID   = 8
	offIfaceMetric = 148
	ifaceLen       = 168
)

// MIB_UNICASTIPADDRESS_ROW.
const (
	offAddress      = 0 // SOCKADDR_INET Address
	offAddressIndex = 40
	offOnLink       = 60 // UINT8 OnLinkPrefixLength
	addressLen      = 80
)

// MIB_IF_ROW2.
const (
	offLinkLUID  = 0
	offLinkIndex = 8
	offAlias     = 28 // WCHAR Alias[IF_MAX_STRING_SIZE + 1]
	aliasLen     = 257
	offHWLen     = 1056 // ULONG PhysicalAddressLength
	offHW        = 1060 // UCHAR PhysicalAddress[IF_MAX_PHYS_ADDRESS_LENGTH]
	hwMax        = 32
	offOper      = 1156 // IF_OPER_STATUS OperStatus
	linkLen      = 1352
	operUp       = 1 // IfOperStatusUp
)

// SOCKADDR_INET, ws2ipdef.h.
const (
	afInet      = 2
	afInet6     = 23
	offAddr4    = 4
	offAddr6    = 8
	offScope    = 24
	sockaddrLen = 28
)

// infinite is a lifetime without end.
const infinite = 1<<32 - 1

// NL_ROUTE_PROTOCOL, nldef.h.
const (
	protoLocal   = 2 // MIB_IPPROTO_LOCAL: follows from an interface's address
	protoNetMgmt = 3 // MIB_IPPROTO_NETMGMT: added by a program, or DHCP
	protoBBN     = 12
	protoNT      = 10000 // MIB_IPPROTO_NT_AUTOSTATIC is 10002, NT_STATIC 10006, NT_STATIC_NON_DOD 10007
)

// OwnProtocol is the NL_ROUTE_PROTOCOL that marks culvert's own routes.
const OwnProtocol = protoBBN

// ntProtocols is where a plan.Route's Protocol, a byte, has those above 10000.
const ntProtocols = 200

var protocolNames = map[uint8]string{
	0: "unknown", 1: "other", protoLocal: "local", protoNetMgmt: "netmgmt", 4: "icmp", 5: "egp", 6: "ggp", 7: "hello",
	8: "rip", 9: "is-is", 10: "es-is", 11: "cisco", OwnProtocol: "culvert", 13: "ospf", 14: "bgp", 15: "idpr",
	16: "eigrp", 17: "dvmrp", 18: "rpl", 19: "dhcp",
	ntProtocols + 2: "nt-autostatic", ntProtocols + 6: "nt-static", ntProtocols + 7: "nt-static-non-dod",
}

// ProtocolName returns the word for a route's Protocol.
func ProtocolName(p uint8) string {
	if name, ok := protocolNames[p]; ok {
		return name
	}
	return strconv.Itoa(int(p))
}

// MIB_NOTIFICATION_TYPE, netioapi.h.
const (
	changeParameter = 0
	changeAdd       = 1
	changeDelete    = 2
)

// What the calls answer, winerror.h.
const (
	errInvalidParameter syscall.Errno = 87
	errFileNotFound     syscall.Errno = 2
	errNotFound         syscall.Errno = 1168
	errObjectExists     syscall.Errno = 5010
)

// pollEvery is how often the table is read with nothing having been announced.
const pollEvery = 5 * time.Second
