package main

import (
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/sshd"
)

// What the state directory has for SSH, in a directory of its own, 0700. Whoever can
// read the first two can do so to all else there.
const (
	sshAuthority = "authority"   // private key: it signs the pods' host keys, which are worked out from it
	sshIdentity  = "id_ed25519"  // private key that this user logs in with
	sshKnown     = "known_hosts" // for clients: the authority, and the pods that there are
	sshConfig    = "config"      // for clients, too
)

func (a *app) sshFile(name string) string { return filepath.Join(a.cfg.file("ssh"), name) }

// An authority signs the host keys of an instance's pods.
type authority struct {
	gossh.Signer
	secret []byte
}

// sshKeys are the instance's authority and the key that its user logs in with. What is
// not there is made.
func (a *app) sshKeys() (ca authority, me gossh.Signer, err error) {
	if err := os.MkdirAll(a.cfg.file("ssh"), 0o700); err != nil {
		return ca, nil, err
	}
	if ca.Signer, err = sshd.HostKey(a.sshFile(sshAuthority)); err != nil {
		return ca, nil, err
	}
	text, err := os.ReadFile(a.sshFile(sshAuthority))
	if err != nil {
		return ca, nil, err
	}
	key, err := gossh.ParseRawPrivateKey(text)
	if err != nil {
		return ca, nil, fmt.Errorf("%s: %w", a.sshFile(sshAuthority), err)
	}
	private, ok := key.(*ed25519.PrivateKey)
	if !ok {
		return ca, nil, fmt.Errorf("%s is no ed25519 key: remove it, and devaipod ssh-config makes another", a.sshFile(sshAuthority))
	}
	ca.secret = private.Seed()
	me, err = sshd.HostKey(a.sshFile(sshIdentity))
	return ca, me, err
}

// hostKey is a pod's: the same as long as the authority is, so that no client ever sees
// another, also when the pod was made anew.
func (ca authority) hostKey(pod string) (ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, ca.secret, nil, "devaipod ssh host key\x00"+pod, ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// certify signs a host key for names: the protocol is OpenSSH's PROTOCOL.certkeys.
func (ca authority) certify(key gossh.PublicKey, names []string) (*gossh.Certificate, error) {
	cert := &gossh.Certificate{Key: key, CertType: gossh.HostCert, KeyId: names[len(names)-1], ValidPrincipals: names, ValidBefore: gossh.CertTimeInfinity}
	return cert, cert.SignCert(rand.Reader, ca.Signer)
}

// sshHello is what a pod's SSH server is told: who it is, and who may come in.
func (a *app) sshHello(ctx context.Context, spec pods.Spec, ca authority, me gossh.Signer) (podfile.SSHHello, error) {
	private, err := ca.hostKey(pods.Name(a.cfg.Instance, spec.Key))
	if err != nil {
		return podfile.SSHHello{}, err
	}
	public, err := gossh.NewPublicKey(private.Public())
	if err != nil {
		return podfile.SSHHello{}, err
	}
	var names []string
	for _, name := range spec.Hosts() {
		names = append(names, name+a.sshDomain())
	}
	cert, err := ca.certify(public, names)
	if err != nil {
		return podfile.SSHHello{}, err
	}
	block, err := gossh.MarshalPrivateKey(private, "")
	if err != nil {
		return podfile.SSHHello{}, err
	}
	return podfile.SSHHello{
		HostKey: string(pem.EncodeToMemory(block)), HostCert: string(gossh.MarshalAuthorizedKey(cert)),
		AuthorizedKeys: a.authorizedKeys(ctx, spec, me),
	}, nil
}

// forgePatience is how long a login waits for the forge to tell of somebody's keys.
const forgePatience = 3 * time.Second

// authorizedKeys are who may come into a pod's workspace: who can read this user's state
// directory, whom the configuration names, and whose pod it is, with the keys that they
// have in the forge now. Without the forge, the last don't come in.
func (a *app) authorizedKeys(ctx context.Context, spec pods.Spec, me gossh.Signer) string {
	lines := []string{strings.TrimSpace(string(gossh.MarshalAuthorizedKey(me.PublicKey()))) + " devaipod"}
	lines = append(lines, a.cfg.SSH.AuthorizedKeys...)
	ctx, cancel := context.WithTimeout(ctx, forgePatience)
	defer cancel()
	theirs, err := a.forgeKeys(ctx, spec)
	if err != nil {
		a.log.Debug("keys in the forge are not asked", "err", err)
	}
	return strings.Join(append(lines, theirs...), "\n")
}

// forgeKeys are the keys of whose pod it is: who labeled the issue, as long as they may
// push, or for a person's own pod the person of this instance.
func (a *app) forgeKeys(ctx context.Context, spec pods.Spec) ([]string, error) {
	creds, err := a.readCredentials()
	if err != nil {
		return nil, err
	}
	client, err := a.serviceForge(creds)
	if err != nil {
		return nil, err
	}
	who := spec.Pin.Labeler
	if spec.Name != "" {
		who = creds.Person
	}
	if who == "" {
		return nil, errors.New("nobody is known whose pod it is")
	}
	info, err := client.RepositoryByID(ctx, spec.RepoID)
	if err != nil {
		return nil, err
	}
	may, err := client.CanWrite(ctx, info.Repo, who)
	if err != nil || !may {
		return nil, errors.Join(err, fmt.Errorf("%s may push to %s: %t", who, info.Repo, may))
	}
	keys, err := client.SSHKeys(ctx, who)
	return plainKeys(keys, who), err
}

// plainKeys are lines with nothing but a key and whose it is: what somebody has put into
// the forge gives no options and no second line.
func plainKeys(lines []string, who string) (out []string) {
	for _, line := range lines {
		key, _, _, _, err := gossh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			continue
		}
		out = append(out, strings.TrimSpace(string(gossh.MarshalAuthorizedKey(key)))+" "+who+" (forge)")
	}
	return out
}
