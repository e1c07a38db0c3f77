package cache

import (
	"fmt"
	"io"
	"strconv"
)

// A notice passes upload-pack's answer on and puts a message of ours in, which
// git shows as "remote: …": before the first packet of a side band, so that it
// stands where such packets may (gitprotocol-pack(5), "side-band-64k").
type notice struct {
	w    io.Writer
	text string
	head []byte // of a packet that is not complete
	left int    // bytes of the packet that pass
	done bool
}

// warning is w, with a message if there is one.
func warning(w io.Writer, text string) io.Writer {
	if text == "" {
		return w
	}
	return &notice{w: w, text: text}
}

func (n *notice) Write(p []byte) (int, error) {
	all := len(p)
	for len(p) > 0 {
		if n.done || n.left > 0 {
			k := len(p)
			if !n.done {
				k = min(k, n.left)
				n.left -= k
			}
			if _, err := n.w.Write(p[:k]); err != nil {
				return 0, err
			}
			p = p[k:]
			continue
		}
		n.head, p = append(n.head, p[0]), p[1:]
		if err := n.step(); err != nil {
			return 0, err
		}
	}
	return all, nil
}

// step looks at what is there of a packet's first five bytes.
func (n *notice) step() error {
	if len(n.head) < 4 {
		return nil
	}
	size, err := strconv.ParseUint(string(n.head[:4]), 16, 16)
	switch {
	case err != nil || size == 4:
		n.done = err != nil // no packets: nothing of ours belongs there
	case size < 4:
	case len(n.head) < 5:
		return nil
	default:
		n.left = int(size) - 5
		if band := n.head[4]; band == 1 || band == 2 {
			n.done = true
			if _, err := fmt.Fprintf(n.w, "%04x\x02%s\n", len(n.text)+6, n.text); err != nil {
				return err
			}
		}
	}
	_, err = n.w.Write(n.head)
	n.head = n.head[:0]
	return err
}
