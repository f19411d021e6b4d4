package sstp

import "sync"

// Sizes of a relay's buffers, in bytes: what is read at one time, and room for
// its TLS records (each up to 16 KiB, with up to 64 bytes around it).
const (
	pieceBytes  = 64 << 10
	bufferBytes = pieceBytes + 8*64
)

type buffer [bufferBytes]byte

// buffers are shared by all connections; an idle connection holds none.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

func getBuffer() *buffer  { return buffers.Get().(*buffer) }
func putBuffer(b *buffer) { buffers.Put(b) }
