package pods

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// caBundles are where systems keep their certificate authorities.
var caBundles = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"}

func (m *Manager) toolsPrefix() string { return "localhost/" + m.cfg.Instance + "/tools:" }

// EnsureTools makes the image that holds devaipod-pod and the certificate
// authorities of this host, and returns its name, which tells its content.
// Older ones that nothing uses are removed.
func (m *Manager) EnsureTools(ctx context.Context, binary string) (ref string, err error) {
	program, err := os.Open(binary)
	if err != nil {
		return "", fmt.Errorf("reading the pod binary: %w", err)
	}
	defer program.Close()
	ca, err := readFirst(caBundles)
	if err != nil {
		return "", err
	}
	// Written twice rather than kept: it is larger than all else that the service
	// holds in memory.
	sum := sha256.New()
	if err := toolsTar(sum, program, ca); err != nil {
		return "", err
	}
	ref = m.toolsPrefix() + hex.EncodeToString(sum.Sum(nil)[:6])
	m.tools.Store(&ref)
	ok, err := m.podman.ImageExists(ctx, ref)
	if err != nil || ok {
		return ref, err
	}
	archive, w := io.Pipe()
	go func() { w.CloseWithError(toolsTar(w, program, ca)) }()
	err = m.podman.ImageImport(ctx, ref, archive, []string{`ENTRYPOINT ["/devaipod-pod"]`})
	if err = errors.Join(err, archive.Close()); err != nil {
		return "", err
	}
	old, err := m.podman.Images(ctx, m.toolsPrefix())
	if err != nil {
		return "", err
	}
	for _, o := range old {
		if o != ref {
			if err := m.podman.ImageRemove(ctx, o); err != nil {
				return "", err
			}
		}
	}
	return ref, nil
}

// RemoveTools removes the instance's tools images.
func (m *Manager) RemoveTools(ctx context.Context) error {
	all, err := m.podman.Images(ctx, m.toolsPrefix())
	if err != nil {
		return err
	}
	for _, ref := range all {
		if err := m.podman.ImageRemove(ctx, ref); err != nil {
			return err
		}
	}
	return nil
}

func readFirst(paths []string) ([]byte, error) {
	for _, p := range paths {
		if b, err := os.ReadFile(p); err == nil {
			return b, nil
		}
	}
	return nil, fmt.Errorf("no certificate authorities found (looked at %s): install ca-certificates", strings.Join(paths, ", "))
}

// toolsTar writes the image's root file system.
func toolsTar(to io.Writer, program *os.File, ca []byte) error {
	info, err := program.Stat()
	if err != nil {
		return err
	}
	if _, err := program.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w := tar.NewWriter(to)
	for _, dir := range []string{"etc", "etc/ssl", "etc/ssl/certs", "run", "run/secrets", "run/pod", "run/pod/agent", "run/pod/workspace", "run/service", "tmp", "proc", "sys", "dev"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name string
		mode int64
		size int64
		data io.Reader
	}{{"devaipod-pod", 0o755, info.Size(), program}, {"etc/ssl/certs/ca-certificates.crt", 0o644, int64(len(ca)), bytes.NewReader(ca)}} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: f.size}); err != nil {
			return err
		}
		if _, err := io.Copy(w, f.data); err != nil {
			return err
		}
	}
	return w.Close()
}

// Secrets have names of their own in podman, <instance>-secret-<name>-<n>: a
// podman of version 4 can't replace one, so a new value gets the next number.

func (m *Manager) secretPrefix() string { return m.cfg.Instance + "-secret-" }

// secretVersions lists the numbers of a secret, smallest first.
func (m *Manager) secretVersions(ctx context.Context, name string) ([]int, error) {
	found, err := m.podman.Secrets(ctx, m.secretPrefix()+name+"-")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, f := range found {
		if n, err := strconv.Atoi(strings.TrimPrefix(f, m.secretPrefix()+name+"-")); err == nil {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

func (m *Manager) secret(name string, n int) string {
	return fmt.Sprintf("%s%s-%d", m.secretPrefix(), name, n)
}

// PutSecret stores a value; pods that start from now on get it. The versions
// before the last are removed (a container keeps what it started with).
func (m *Manager) PutSecret(ctx context.Context, name string, value []byte) error {
	have, err := m.secretVersions(ctx, name)
	if err != nil {
		return err
	}
	next := 1
	if len(have) > 0 {
		next = have[len(have)-1] + 1
	}
	if err := m.podman.SecretPut(ctx, m.secret(name, next), value); err != nil {
		return err
	}
	for _, n := range have {
		if err := m.podman.SecretRemove(ctx, m.secret(name, n)); err != nil {
			return err
		}
	}
	return nil
}

// CurrentSecret is the podman name of a secret's newest version.
func (m *Manager) CurrentSecret(ctx context.Context, name string) (ref string, ok bool, err error) {
	have, err := m.secretVersions(ctx, name)
	if err != nil || len(have) == 0 {
		return "", false, err
	}
	return m.secret(name, have[len(have)-1]), true, nil
}

// Secrets lists the names that have a value.
func (m *Manager) Secrets(ctx context.Context) ([]string, error) {
	found, err := m.podman.Secrets(ctx, m.secretPrefix())
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range found {
		name := strings.TrimPrefix(f, m.secretPrefix())
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			out = append(out, name[:i])
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// RemoveSecret removes a secret; it is an error when there is none.
func (m *Manager) RemoveSecret(ctx context.Context, name string) error {
	have, err := m.secretVersions(ctx, name)
	if err != nil {
		return err
	}
	if len(have) == 0 {
		return fmt.Errorf("there is no secret %s (devaipod secret list)", name)
	}
	for _, n := range have {
		if err := m.podman.SecretRemove(ctx, m.secret(name, n)); err != nil {
			return err
		}
	}
	return nil
}

// RemoveSecrets removes all secrets of the instance.
func (m *Manager) RemoveSecrets(ctx context.Context) error {
	found, err := m.podman.Secrets(ctx, m.secretPrefix())
	if err != nil {
		return err
	}
	for _, f := range found {
		if err := m.podman.SecretRemove(ctx, f); err != nil {
			return err
		}
	}
	return nil
}
