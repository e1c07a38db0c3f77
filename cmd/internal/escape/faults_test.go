package main_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit/lab"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// faults are what a pod's program is told when what lies beyond its gate is broken:
// in the sealed pod, by its shim, gate and network. Each way works before and
// after.
func faults(t *testing.T, p *place) {
	broken := map[string]string{ // by what the failure must say
		lab.ExpiredName: "certificate has expired",
		lab.WrongName:   "certificate is valid for another.tls.test, not " + lab.WrongName,
	}
	check := func(how, cut string, ca []byte) {
		t.Helper()
		p.wantFetched(t, lab.SoundName, ca)
		broken[lab.CutName] = cut
		for name, why := range broken {
			got := p.fetch(t, name, ca)
			t.Logf("%s, %s: %s", how, name, got)
			if !strings.Contains(got, name) || !strings.Contains(got, why) || strings.Contains(got, p.lab.Nonce) {
				t.Errorf("%s, %s: %q, want %q", how, name, got, why)
			}
		}
		p.lab.Mute(true)
		start := time.Now()
		got := p.fetch(t, lab.OtherName, ca) // to which no connection is open
		t.Logf("%s, without a resolver, after %s: %s", how, time.Since(start).Round(time.Millisecond), got)
		if !strings.Contains(got, "devaipod: "+lab.OtherName+":443 can't be reached: ") || !strings.Contains(got, "look") {
			t.Errorf("%s, without a resolver: %q", how, got)
		}
		p.lab.Mute(false)
		p.wantFetched(t, lab.OtherName, ca)
	}
	check("in a tunnel", "EOF", p.lab.CA()) // as the program itself says it
	for _, name := range []string{lab.SoundName, lab.OtherName, lab.ExpiredName, lab.WrongName, lab.CutName} {
		p.inject = append(p.inject, podfile.Injection{Host: name, Header: "X-Secret", Value: "a-secret", Secret: "a-secret"})
	}
	must(t, p.manager.Steer(p.key))
	for end := time.Now().Add(20 * time.Second); !strings.Contains(p.fetch(t, lab.WrongName, nil), "devaipod: "); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the gate does not read that there are secrets")
		}
	}
	check("with a secret", "devaipod: "+lab.CutName+":443 can't be reached: it ended the connection", nil) // by the gate's own certificate, which the agent trusts
}

// fetch is what comes of https://NAME/ in the agent's container.
func (p *place) fetch(t *testing.T, name string, ca []byte) string {
	t.Helper()
	var said bytes.Buffer
	_, err := p.client.Exec(t.Context(), p.container(p.key, pods.RoleAgent), "", []string{"/bin/escape", "fetch", "https://" + name + "/"}, bytes.NewReader(ca), &said, &said)
	must(t, err)
	return said.String()
}

// wantFetched waits until a site is reached: a change takes the gate a moment.
func (p *place) wantFetched(t *testing.T, name string, ca []byte) {
	t.Helper()
	var got string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if got = p.fetch(t, name, ca); strings.HasPrefix(got, "200 OK") && strings.Contains(got, p.lab.Mark(name)) {
			return
		}
	}
	t.Fatalf("%s is not reached: %q", name, got)
}
