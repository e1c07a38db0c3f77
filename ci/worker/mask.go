package worker

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
)

// Bounds on what a job may have masked with ::add-mask::, which costs at each line.
const (
	maxMasks     = 2000
	maxMaskBytes = 1 << 20
)

// masks take secrets out of text. They are not safe for concurrent use.
type masks struct {
	words map[string]bool
	bytes int
	all   *strings.Replacer // nil: to be made anew
}

func newMasks(secrets ...string) *masks {
	m := &masks{words: map[string]bool{}}
	for _, s := range secrets {
		m.add(s)
	}
	return m
}

// add masks a value, each of its lines, and the ways in which it is often written.
func (m *masks) add(value string) {
	if len(m.words) >= maxMasks || m.bytes+len(value) > maxMaskBytes {
		return
	}
	values := []string{value}
	if strings.ContainsAny(value, "\r\n") {
		values = append(values, strings.FieldsFunc(value, func(r rune) bool { return r == '\n' || r == '\r' })...)
	}
	for _, v := range values {
		for _, word := range written(v) {
			if word = strings.TrimSpace(word); word != "" && !m.words[word] {
				m.words[word], m.all = true, nil
				m.bytes += len(word)
			}
		}
	}
}

// written is v as it is, within JSON, within an address, and in base64, wherever in
// what is encoded it stands.
func written(v string) []string {
	out := []string{v, url.QueryEscape(v), url.PathEscape(v)}
	if quoted, err := json.Marshal(v); err == nil {
		out = append(out, string(quoted[1:len(quoted)-1]))
	}
	if len(v) < 8 {
		return out // what is left in base64 would be found everywhere
	}
	for skip := range 3 {
		// Whole groups of three bytes: the last ones depend on what follows.
		whole := v[skip : skip+(len(v)-skip)/3*3]
		out = append(out, base64.StdEncoding.EncodeToString([]byte(whole)), base64.URLEncoding.EncodeToString([]byte(whole)))
	}
	return append(out, base64.StdEncoding.EncodeToString([]byte(v)), base64.URLEncoding.EncodeToString([]byte(v)))
}

// hide is text without what is masked.
func (m *masks) hide(text string) string {
	if m.all == nil {
		words := make([]string, 0, len(m.words))
		for w := range m.words {
			words = append(words, w)
		}
		slices.SortFunc(words, func(a, b string) int { return len(b) - len(a) }) // of two that begin alike the longer counts
		pairs := make([]string, 0, 2*len(words))
		for _, w := range words {
			pairs = append(pairs, w, "***")
		}
		m.all = strings.NewReplacer(pairs...)
	}
	return m.all.Replace(text)
}
