// Package redact takes a secret out of what somebody answers who was shown it:
// a provider's error may tell the key it got, and the agent must not read it
// there. A [Writer] and a [Reader] do so with a stream, without holding it up;
// [String] and [Header] with what is whole.
//
// Only the secret's very bytes are found: not what a server makes of them, such
// as base64 or a hash, and not in what is compressed.
package redact

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
)

// tooShort is the length in bytes below which a key is no secret, and would be
// found in innocent text.
const tooShort = 8

const redacted = "[key]"

// A Writer passes on what is written to it with the secret left out. It keeps
// back only what may be the secret's beginning, so nothing waits that ends with
// a newline, as streamed events do. It is not safe for concurrent use.
type Writer struct {
	w      io.Writer
	secret []byte
	held   []byte
}

// NewWriter returns a Writer to w. A secret of less than 8 bytes is taken for
// none.
func NewWriter(w io.Writer, secret string) *Writer {
	if len(secret) < tooShort {
		secret = ""
	}
	return &Writer{w: w, secret: []byte(secret)}
}

// Write implements [io.Writer]; its errors are those of what it writes to.
func (r *Writer) Write(p []byte) (int, error) {
	if len(r.secret) == 0 {
		return r.w.Write(p)
	}
	text := bytes.ReplaceAll(append(r.held, p...), r.secret, []byte(redacted))
	keep := min(len(r.secret)-1, len(text))
	for keep > 0 && !bytes.HasPrefix(r.secret, text[len(text)-keep:]) {
		keep--
	}
	r.held = append([]byte(nil), text[len(text)-keep:]...)
	if _, err := r.w.Write(text[:len(text)-keep]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes what was kept back, at the end.
func (r *Writer) Flush() error {
	_, err := r.w.Write(r.held)
	r.held = nil
	return err
}

// A Reader reads what a [Writer] would write of another reader's bytes. It
// gives what there is as soon as it is there. It is not safe for concurrent use.
type Reader struct {
	from io.Reader
	w    *Writer
	out  bytes.Buffer
	buf  []byte
	err  error
}

// NewReader returns a Reader of from without the secret.
func NewReader(from io.Reader, secret string) *Reader {
	r := &Reader{from: from, buf: make([]byte, 32<<10)}
	r.w = NewWriter(&r.out, secret)
	return r
}

// Read implements [io.Reader]; its errors are those of what it reads.
func (r *Reader) Read(p []byte) (int, error) {
	for r.out.Len() == 0 && r.err == nil && len(p) > 0 {
		n, err := r.from.Read(r.buf)
		r.err = err
		if _, err := r.w.Write(r.buf[:n]); err != nil {
			r.err = errors.Join(r.err, err)
		}
		if r.err != nil {
			if err := r.w.Flush(); err != nil {
				r.err = errors.Join(r.err, err)
			}
		}
	}
	if r.out.Len() > 0 {
		return r.out.Read(p)
	}
	return 0, r.err
}

// String is a [Writer] for a text that is whole.
func String(s, secret string) string {
	if len(secret) < tooShort {
		return s
	}
	return strings.ReplaceAll(s, secret, redacted)
}

// Header takes the secret out of all values of h, in place, and fields whose name
// has it, in any case.
func Header(h http.Header, secret string) {
	for name, values := range h {
		if len(secret) >= tooShort && strings.Contains(strings.ToLower(name), strings.ToLower(secret)) {
			delete(h, name)
		}
		for i, v := range values {
			values[i] = String(v, secret)
		}
	}
}
