package enforce

import (
	"strconv"
	"strings"
)

// Sender says who may send a tunnel's own packets to its server: see [Session.ServerFrom].
type Sender struct {
	By SenderKind
	ID uint32 // SenderUID: the user id; SenderMark: the mark, never 0; else 0
}

// SenderKind says by what a sender is recognised.
type SenderKind string

// The kinds of senders.
const (
	SenderAny  SenderKind = "any"  // anybody, and what this host forwards
	SenderHost SenderKind = "host" // this host, and nothing that it forwards
	SenderUID  SenderKind = "uid"  // sockets of one user
	SenderMark SenderKind = "mark" // packets with one firewall mark
)

// String is how a sender is written: any, host, uid:N or mark:N.
func (s Sender) String() string {
	if s.By == SenderUID || s.By == SenderMark {
		return string(s.By) + ":" + strconv.FormatUint(uint64(s.ID), 10)
	}
	return string(s.By)
}

// ParseSender parses what String returns; numbers may also be hexadecimal (0x). A user's
// name and "auto" are not taken: they are for the caller to resolve. The error is an
// [*InputError].
func ParseSender(word string) (Sender, error) {
	kind, text, numbered := strings.Cut(word, ":")
	s := Sender{By: SenderKind(kind)}
	switch s.By {
	case SenderAny, SenderHost:
		if !numbered {
			return s, nil
		}
	case SenderUID, SenderMark:
		n, err := strconv.ParseUint(text, 0, 32)
		if err == nil && (n != 0 || s.By == SenderUID) {
			s.ID = uint32(n)
			return s, nil
		}
	}
	return Sender{}, &InputError{Input: word, Text: "is no sender of a tunnel's packets; write any, host, uid:1000 or mark:0xca6c"}
}
