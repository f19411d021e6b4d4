package sstppeer

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rfcLogin is the login of RFC 2759 9.2, which RFC 3079 3.5.3 goes on with.
func rfcLogin(t *testing.T) credentials {
	c := credentials{user: "User", password: "clientPass"}
	copy(c.authChallenge[:], unhex(t, "5B 5D 7C 7D 7B 3F 2F 3E 3C 2C 60 21 32 26 26 28"))
	copy(c.peerChallenge[:], unhex(t, "21 40 23 24 25 5E 26 2A 28 29 5F 2B 3A 33 7C 7E"))
	return c
}

func TestLoginOfRFC2759(t *testing.T) {
	c := rfcLogin(t)
	nt := c.ntResponse()
	for _, x := range []struct {
		name string
		got  []byte
		want string
	}{
		{"challenge", c.challenge(), "D0 2E 43 86 BC E9 12 26"},
		{"password hash", passwordHash(c.password), "44 EB BA 8D 53 12 B8 D6 11 47 44 11 F5 69 89 AE"},
		{"hash of the hash", passwordHashHash(c.password), "41 C0 0C 58 4B D2 D9 1C 40 17 A2 A1 2F A5 9F 3F"},
		{"NT response", nt[:], "82 30 9E CD 8D 70 8B 5E A0 8F AA 39 81 CD 83 54 42 33 11 4A 3D 85 D6 DF"},
	} {
		if !bytes.Equal(x.got, unhex(t, x.want)) {
			t.Errorf("%s is % X, want %s", x.name, x.got, x.want)
		}
	}
	const proof = "S=407A5589115FD0D6209F510FE9C04566932CDA56"
	if got := c.authenticator(nt); got != proof {
		t.Errorf("authenticator response %s, want %s", got, proof)
	}
	if !c.proves(nt, proof+" M=Welcome") || c.proves(nt, "S=407A5589115FD0D6209F510FE9C04566932CDA57") || c.proves(nt, "") {
		t.Error("the client takes a wrong proof, or refuses the right one")
	}
}

func TestKeysOfRFC3079(t *testing.T) {
	c := rfcLogin(t)
	nt := c.ntResponse()
	master := c.masterKey(nt)
	// 3.5.3: 128 bits. The send key there is the server's, the client's receive key.
	for _, x := range []struct {
		name string
		got  []byte
		want string
	}{
		{"master key", master, "FD EC E3 71 7A 8C 83 8C B3 88 E5 27 AE 3C DD 31"},
		{"client's receive key", startKey(master, magicReceive), "8B 7C DC 14 9B 99 3A 1B A1 18 CB 15 3F 56 DC CB"},
	} {
		if !bytes.Equal(x.got, unhex(t, x.want)) {
			t.Errorf("%s is % X, want %s", x.name, x.got, x.want)
		}
	}
	key := c.authKey(nt)
	if len(key) != 2*sessionKeySize || !bytes.Equal(key[sessionKeySize:], startKey(master, magicReceive)) ||
		!bytes.Equal(key[:sessionKeySize], startKey(master, magicSend)) || bytes.Equal(key[:sessionKeySize], key[sessionKeySize:]) {
		t.Errorf("authentication key % X", key)
	}
}

// A Windows client sends DOMAIN\user and hashes the user alone (RFC 2759 4).
func TestDomainIsNoPartOfTheChallenge(t *testing.T) {
	with, without := rfcLogin(t), rfcLogin(t)
	with.user = `EXAMPLE\` + with.user
	if with.ntResponse() != without.ntResponse() {
		t.Error("the domain changes the response")
	}
}
