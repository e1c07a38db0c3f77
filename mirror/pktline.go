package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// Bounds on a push's command list. A pod pushes one branch, or a few.
const (
	maxCommands     = 1000
	maxCommandBytes = 1 << 20
	maxPktLine      = 65520 // gitprotocol-common(5)
)

var errMalformed = errors.New("malformed push request")

// A command is one ref update that a push asks for; see the "update-requests"
// grammar in gitprotocol-pack(5).
type command struct {
	old, new string
	ref      string
}

func (c command) deletes() bool { return strings.Trim(c.new, "0") == "" }

// A commandList is the head of a git-receive-pack request, up to and including
// the flush packet that ends it.
type commandList struct {
	commands []command
	caps     map[string]bool
	raw      []byte // exactly what was read, to be sent on before the rest
}

// readCommands reads the command list and nothing after it: the pack stays in
// r. An empty list (a lone flush packet) is git's probe for authentication.
func readCommands(r io.Reader) (*commandList, error) {
	var raw bytes.Buffer
	tee := io.TeeReader(r, &raw)
	list := &commandList{caps: map[string]bool{}}
	for {
		line, flush, err := readPktLine(tee)
		if err != nil {
			return nil, err
		}
		if flush {
			list.raw = raw.Bytes()
			return list, nil
		}
		if raw.Len() > maxCommandBytes || len(list.commands) >= maxCommands {
			return nil, fmt.Errorf("%w: more than %d ref updates in one push", errMalformed, maxCommands)
		}
		if err := list.add(line); err != nil {
			return nil, err
		}
	}
}

// add takes one line of the list. Only the first command carries capabilities.
func (l *commandList) add(line []byte) error {
	if bytes.HasPrefix(line, []byte("shallow ")) {
		return nil
	}
	if bytes.HasPrefix(line, []byte("push-cert")) {
		return fmt.Errorf("%w: signed pushes are not taken here", errMalformed)
	}
	text, caps, _ := bytes.Cut(line, []byte{0})
	if len(l.commands) == 0 {
		for _, c := range strings.Fields(string(caps)) {
			l.caps[c] = true
		}
	}
	f := strings.SplitN(strings.TrimSuffix(string(text), "\n"), " ", 3)
	if len(f) != 3 || !isObjectID(f[0]) || !isObjectID(f[1]) || len(f[0]) != len(f[1]) || gitproc.Printable(f[2]) != f[2] {
		return fmt.Errorf("%w: not a ref update: %.80q", errMalformed, text)
	}
	l.commands = append(l.commands, command{old: f[0], new: f[1], ref: f[2]})
	return nil
}

func isObjectID(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

// readPktLine reads one packet; flush is true for "0000". The other special
// packets of protocol v2 do not belong in a push.
func readPktLine(r io.Reader) (line []byte, flush bool, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, false, fmt.Errorf("%w: %w", errMalformed, err)
	}
	n, err := strconv.ParseUint(string(head[:]), 16, 16)
	if err != nil || n > maxPktLine || (n > 0 && n < 5) {
		return nil, false, fmt.Errorf("%w: packet length %q", errMalformed, head)
	}
	if n == 0 {
		return nil, true, nil
	}
	line = make([]byte, n-4)
	if _, err := io.ReadFull(r, line); err != nil {
		return nil, false, fmt.Errorf("%w: %w", errMalformed, err)
	}
	return line, false, nil
}

// appendPktLine adds one packet that holds s.
func appendPktLine(b []byte, s string) []byte {
	return append(fmt.Appendf(b, "%04x", len(s)+4), s...)
}

// validRef tells whether a ref name is one that git itself would take
// (git-check-ref-format(1)).
func validRef(ref string) bool {
	return plumbing.ReferenceName(ref).Validate() == nil
}
