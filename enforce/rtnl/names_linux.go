package rtnl

// protocolNames are those of include/uapi/linux/rtnetlink.h and iproute2's
// rt_protos.
var protocolNames = map[uint8]string{
	0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated",
	9: "ra", 10: "mrt", 11: "zebra", 12: "bird", 13: "dnrouted", 14: "xorp",
	15: "ntk", 16: "dhcp", 17: "mrouted", 18: "keepalived", 42: "babel",
	84: "ovn", 99: "openr", OwnProtocol: "culvert", 186: "bgp", 187: "isis",
	188: "ospf", 189: "rip", 192: "eigrp",
}

// ProtocolName returns the name of a route protocol, or its number.
func ProtocolName(p uint8) string {
	if name, ok := protocolNames[p]; ok {
		return name
	}
	return number(uint32(p))
}
