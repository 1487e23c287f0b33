package enforce

import (
	"strconv"
	"strings"
)

// Sender is who sends a tunnel's transport: see Session.ServerFrom.
type Sender struct {
	By SenderKind
	ID uint32 // of SenderUID and SenderMark
}

// SenderKind is what a sender is known by.
type SenderKind string

// The kinds of senders.
const (
	SenderAny  SenderKind = "any"  // nothing: whoever sends, and what is forwarded
	SenderHost SenderKind = "host" // this host sends it
	SenderUID  SenderKind = "uid"  // the user of the socket
	SenderMark SenderKind = "mark" // the packet's mark
)

// String is how a sender is written: any, host, uid:N or mark:N.
func (s Sender) String() string {
	if s.By == SenderUID || s.By == SenderMark {
		return string(s.By) + ":" + strconv.FormatUint(uint64(s.ID), 10)
	}
	return string(s.By)
}

// ParseSender parses what String returns. Numbers may be written in hexadecimal, after 0x. The error is an *InputError.
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
