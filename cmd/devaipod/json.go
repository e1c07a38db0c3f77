package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode"
)

// printJSON prints v as one line of JSON, as --json of each command does. Programs read
// it, and people's terminals show it: so what agents, issues and repositories may have
// put into a text to steer a terminal, or to show it otherwise than it is (controls,
// marks of direction, what takes no room), is written as \u escapes. The value is the same.
func (a *app) printJSON(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = a.out.Write(append(escapeJSON(line), '\n'))
	return err
}

// escapeJSON changes how a JSON text is written, not its value: such runes are in its
// strings alone.
func escapeJSON(text []byte) []byte {
	var b bytes.Buffer
	for _, r := range string(text) {
		switch {
		case !unicode.In(r, unicode.Cc, unicode.Cf):
			b.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.Bytes()
}
