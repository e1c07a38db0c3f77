package cache

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"sync"
	"time"
)

// A memo remembers things for a while. It holds a bounded number of them, since
// what is remembered is chosen by whoever asks.
type memo[K comparable, V any] struct {
	now func() time.Time

	mu sync.Mutex
	m  map[K]remembered[V]
}

type remembered[V any] struct {
	value V
	until time.Time
}

// maxRemembered is how many things a memo holds.
const maxRemembered = 10_000

func newMemo[K comparable, V any](now func() time.Time) *memo[K, V] {
	return &memo[K, V]{now: now, m: map[K]remembered[V]{}}
}

func (m *memo[K, V]) get(k K) (v V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.m[k]
	if !ok || !m.now().Before(r.until) {
		return v, false
	}
	return r.value, true
}

func (m *memo[K, V]) put(k K, v V, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if len(m.m) >= maxRemembered {
		for k, r := range m.m {
			if !now.Before(r.until) {
				delete(m.m, k)
			}
		}
	}
	if len(m.m) >= maxRemembered {
		clear(m.m) // somebody asks for the moon: remembering is only for speed
	}
	m.m[k] = remembered[V]{v, now.Add(d)}
}

func (m *memo[K, V]) forget(k K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.m, k)
}

// verified remembers which credentials the upstream has let in where, without
// holding them.
type verified struct {
	key  []byte
	memo *memo[[sha256.Size]byte, struct{}]
}

// verifiedFor is how long credentials are good for without asking again: long
// enough for the requests of one clone to begin.
const verifiedFor = time.Minute

func newVerified(now func() time.Time) *verified {
	return &verified{key: []byte(rand.Text()), memo: newMemo[[sha256.Size]byte, struct{}](now)}
}

func (v *verified) sum(addr Address, auth string) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, v.key)
	h.Write([]byte(addr.String() + "\x00" + auth))
	h.Sum(sum[:0])
	return sum
}

func (v *verified) has(addr Address, auth string) bool {
	_, ok := v.memo.get(v.sum(addr, auth))
	return ok
}

func (v *verified) add(addr Address, auth string) {
	v.memo.put(v.sum(addr, auth), struct{}{}, verifiedFor)
}
