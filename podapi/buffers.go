package podapi

import (
	"net/http/httputil"
	"sync"
)

// Buffers are for proxies of what agents serve. They are large: a body passes through
// two of them on its way to a browser.
var Buffers httputil.BufferPool = &buffers{}

const bufferSize = 64 << 10

type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if kept, ok := b.pool.Get().(*[]byte); ok {
		return *kept
	}
	return make([]byte, bufferSize)
}

func (b *buffers) Put(buf []byte) { b.pool.Put(&buf) }
