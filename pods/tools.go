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
	"strings"

	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/image"
)

// Images are where a backend finds the images of containers.
type Images interface {
	// ImageExists tells whether an image is there.
	ImageExists(ctx context.Context, ref string) (bool, error)
	// ImageInfo reads what one says of itself; ok is false when it is not there.
	ImageInfo(ctx context.Context, ref string) (info backend.ImageInfo, ok bool, err error)
	// ImagePull fetches one from its registry and shows progress.
	ImagePull(ctx context.Context, ref string, progress io.Writer) error
	// ImageBuild builds one; what the build prints is written to log.
	ImageBuild(ctx context.Context, b backend.ImageBuild, log io.Writer) error
	// ImageImport makes one of a root file system. changes are instructions like
	// `ENTRYPOINT ["/x"]` (podman-import(1)).
	ImageImport(ctx context.Context, ref string, tar io.Reader, changes []string) error
	// Images lists the names that begin with prefix.
	Images(ctx context.Context, prefix string) ([]string, error)
	// ImageRemove removes one that no container uses.
	ImageRemove(ctx context.Context, ref string) error
	// LabeledImages lists those that carry all of labels.
	LabeledImages(ctx context.Context, labels map[string]string) ([]backend.ImageThing, error)
	// ImagesInUse are the IDs of those that containers are made of, whoever's.
	ImagesInUse(ctx context.Context) (map[string]bool, error)
	// ImageRemoveAll removes one under all its names, unless a container uses it.
	ImageRemoveAll(ctx context.Context, i backend.ImageThing) error
	// ImageDir is the directory of the host that they are in.
	ImageDir(ctx context.Context) (string, error)
}

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
	ca, err := readFirst(image.CABundles)
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
	ok, err := m.images.ImageExists(ctx, ref)
	if err != nil || ok {
		return ref, err
	}
	archive, w := io.Pipe()
	go func() { w.CloseWithError(toolsTar(w, program, ca)) }()
	err = m.images.ImageImport(ctx, ref, archive, []string{`ENTRYPOINT ["/devaipod-pod"]`, "LABEL " + labelInstance + "=" + m.cfg.Instance})
	if err = errors.Join(err, archive.Close()); err != nil {
		return "", err
	}
	old, err := m.images.Images(ctx, m.toolsPrefix())
	if err != nil {
		return "", err
	}
	for _, o := range old {
		if o != ref {
			if err := m.images.ImageRemove(ctx, o); err != nil {
				return "", err
			}
		}
	}
	return ref, nil
}

// RemoveTools removes the instance's tools images.
func (m *Manager) RemoveTools(ctx context.Context) error {
	all, err := m.images.Images(ctx, m.toolsPrefix())
	if err != nil {
		return err
	}
	for _, ref := range all {
		if err := m.images.ImageRemove(ctx, ref); err != nil {
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

// noModels is a file of the tools image that says to opencode that there are no models but
// those of its configuration. It would read some thousand from its own program at each
// start, for a third of the processor time that a first answer takes.
const noModels = "no-models.json"

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
	for _, dir := range []string{"etc", "etc/ssl", "etc/ssl/certs", "run", "run/pod", "run/pod/agent", "run/pod/workspace", "run/service", "run/usage", "tmp", "proc", "sys", "dev"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name string
		mode int64
		size int64
		data io.Reader
	}{{"devaipod-pod", 0o755, info.Size(), program}, {"etc/ssl/certs/ca-certificates.crt", 0o644, int64(len(ca)), bytes.NewReader(ca)}, {noModels, 0o644, 2, strings.NewReader("{}")}} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: f.size}); err != nil {
			return err
		}
		if _, err := io.Copy(w, f.data); err != nil {
			return err
		}
	}
	return w.Close()
}
