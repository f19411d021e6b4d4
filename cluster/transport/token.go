package transport

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"strings"
)

// Token is a join token: 160 random bits. The log holds its hash only.
type Token [20]byte

// tokenPrefix makes a token recognisable in a shell history or a leak scanner;
// no hyphens, so that a double click takes the whole of it.
const tokenPrefix = "vpnlb_"

// tokenSum is how many bytes of SHA-256 follow the random ones, to tell a
// typing error from an unknown token.
const tokenSum = 5

// tokenChars is the length of a token in text.
const tokenChars = len(tokenPrefix) + (len(Token{})+tokenSum)*8/5

var tokenText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewToken draws a token.
func NewToken() Token {
	var t Token
	rand.Read(t[:]) // never fails (crypto/rand, Go 1.24)
	return t
}

// String gives the form people paste: 46 letters and digits.
func (t Token) String() string {
	sum := sha256.Sum256(t[:])
	return tokenPrefix + tokenText.EncodeToString(append(t[:], sum[:tokenSum]...))
}

// Hash is what the log stores (state.Token.Hash).
func (t Token) Hash() [32]byte { return sha256.Sum256(t[:]) }

// ParseToken reads what String wrote, in either case, with blanks around.
func ParseToken(s string) (Token, error) {
	var t Token
	s = strings.ToLower(strings.TrimSpace(s))
	b, err := tokenText.DecodeString(strings.TrimPrefix(s, tokenPrefix))
	if err != nil || len(b) != len(t)+tokenSum || len(s) != tokenChars || !strings.HasPrefix(s, tokenPrefix) {
		return t, errors.New("parse token: not a join token (" + tokenPrefix + " and 40 letters or digits)")
	}
	sum := sha256.Sum256(b[:len(t)])
	if subtle.ConstantTimeCompare(sum[:tokenSum], b[len(t):]) != 1 {
		return t, errors.New("parse token: a letter is wrong or missing")
	}
	return Token(b[:len(t)]), nil
}
