package gate

import (
	"bytes"
	"io"
	"net/http"
	"strings"
)

// A provider's answer may tell the key it was shown, in an error's words for
// one. The agent must not read it there.

// tooShort is the length in bytes below which a key is no secret, and would be
// found in innocent text.
const tooShort = 8

const redacted = "[key]"

// A redactor passes on what is written to it with the secret left out. It
// keeps back only what may be the secret's beginning, so nothing waits that
// ends with a newline, as streamed events do.
type redactor struct {
	w      io.Writer
	secret []byte
	held   []byte
}

func newRedactor(w io.Writer, secret string) *redactor {
	if len(secret) < tooShort {
		secret = ""
	}
	return &redactor{w: w, secret: []byte(secret)}
}

func (r *redactor) Write(p []byte) (int, error) {
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

// flush writes what was kept back, at the end.
func (r *redactor) flush() error {
	_, err := r.w.Write(r.held)
	r.held = nil
	return err
}

// redact is a redactor for a text that is whole.
func redact(s, secret string) string {
	if len(secret) < tooShort {
		return s
	}
	return strings.ReplaceAll(s, secret, redacted)
}

// redactHeader is the same for headers.
func redactHeader(h http.Header, secret string) {
	for _, values := range h {
		for i, v := range values {
			values[i] = redact(v, secret)
		}
	}
}
