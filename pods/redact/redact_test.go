package redact_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"codeberg.org/devaipod/devaipod/pods/redact"
)

const secret = "sk-sk-secret"

func TestASecretIsLeftOutHoweverItIsCut(t *testing.T) {
	text := "a " + secret + " sk-" + secret + " sk-sk-secre, sk-sk-sk-secret"
	want := "a [key] sk-[key] sk-sk-secre, sk-[key]"
	for name, from := range map[string]io.Reader{
		"at once":        strings.NewReader(text),
		"byte by byte":   iotest.OneByteReader(strings.NewReader(text)),
		"in halves":      iotest.HalfReader(strings.NewReader(text)),
		"end with data":  iotest.DataErrReader(strings.NewReader(text)),
		"two in a chain": redact.NewReader(strings.NewReader(text), "no such secret"),
	} {
		got, err := io.ReadAll(redact.NewReader(from, secret))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	if got := redact.String(text, secret); got != want {
		t.Errorf("String: %q", got)
	}
	h := http.Header{"A": {"x", secret}, "X-Sk-Sk-Secret": {"1"}}
	if redact.Header(h, secret); len(h) != 1 || h.Get("A") != "x" || h["A"][1] != "[key]" {
		t.Errorf("Header: %q", h)
	}
}

func TestAStreamIsNotHeldUp(t *testing.T) {
	r, w := io.Pipe()
	got := redact.NewReader(r, secret)
	for _, event := range []string{"data: one\n", "data: sk-\n"} {
		go w.Write([]byte(event)) //nolint:errcheck // what comes out tells
		buf := make([]byte, 100)
		n, err := got.Read(buf)
		if err != nil || string(buf[:n]) != event {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
	broke := errors.New("broke off")
	w.CloseWithError(broke)
	if _, err := got.Read(make([]byte, 1)); !errors.Is(err, broke) {
		t.Errorf("the end of what is read is told as %v", err)
	}
}

func TestAShortKeyIsNoSecret(t *testing.T) {
	var b bytes.Buffer
	w := redact.NewWriter(&b, "a")
	if _, err := w.Write([]byte("banana")); err != nil || w.Flush() != nil || b.String() != "banana" {
		t.Errorf("%q, %v", b.String(), err)
	}
}
