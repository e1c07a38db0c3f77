package dockerfile_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/ci/dockerfile"
)

// A machine stands for podman: its containers are maps of files, and commands are not
// run but noted.
type machine struct {
	t          *testing.T
	images     map[string]map[string]string // content by path; "/" at the end of a directory's
	containers map[string]box
	made       int
	ran        []string
}

type box struct {
	files map[string]string
	dockerfile.Process
}

func newMachine(t *testing.T) *machine {
	return &machine{t: t, containers: map[string]box{}, images: map[string]map[string]string{
		"scratch": {}, "base": {"/bin/sh": "0:0 755 shell", "/bin/": "", "/opt/": "", "/etc/motd": "0:0 644 hello"},
	}}
}

func (m *machine) Base(_ context.Context, name string) (dockerfile.Image, error) {
	if m.images[name] == nil {
		return dockerfile.Image{}, errors.New("jobs may not use it")
	}
	i := dockerfile.Image{ID: name}
	if name == "base" {
		i.Config = dockerfile.Config{Env: []string{"PATH=/bin", "FROM=base"}, Entrypoint: []string{"/base"}, Cmd: []string{"of base"}, User: "nobody", Dir: "/opt"}
	}
	return i, nil
}

func (m *machine) Create(_ context.Context, image string, p dockerfile.Process) (string, error) {
	m.made++
	id := fmt.Sprint("c", m.made)
	m.containers[id] = box{maps.Clone(m.images[image]), p}
	return id, nil
}

func (m *machine) Run(_ context.Context, id string, out io.Writer) (int, error) {
	b := m.containers[id]
	m.ran = append(m.ran, fmt.Sprintf("%q %q as %q in %q", b.Argv, b.Env, b.User, b.Dir))
	command := b.Argv[len(b.Argv)-1]
	fmt.Fprintf(out, "running\n%s", command)
	b.files["/ran/"+command] = ""
	if command == "fail" {
		return 3, nil
	}
	return 0, nil
}

func (m *machine) IsDir(_ context.Context, id, path string) (bool, error) {
	for name := range m.containers[id].files {
		if strings.HasPrefix(name, strings.TrimSuffix(path, "/")+"/") {
			return true, nil
		}
	}
	return false, nil
}

func (m *machine) Read(_ context.Context, id, from string) (io.ReadCloser, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, text := range m.containers[id].files {
		if rest, ok := strings.CutPrefix(name, from); ok && (rest == "" || rest[0] == '/') {
			_, content, _ := strings.Cut(text, " ")
			_, content, _ = strings.Cut(content, " ")
			h := &tar.Header{Name: path.Base(from) + rest, Mode: 0o755, Size: int64(len(content))}
			must(m.t, w.WriteHeader(h))
			_, err := io.WriteString(w, content)
			must(m.t, err)
		}
	}
	return io.NopCloser(&buf), w.Close()
}

func (m *machine) Write(_ context.Context, id string, files io.Reader) error {
	for r := tar.NewReader(files); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		content, err := io.ReadAll(r)
		must(m.t, err)
		text := fmt.Sprintf("%d:%d %o %s", h.Uid, h.Gid, h.Mode, content)
		switch h.Typeflag {
		case tar.TypeDir:
			m.containers[id].files["/"+h.Name+"/"] = ""
			continue
		case tar.TypeSymlink, tar.TypeLink:
			text = string(h.Typeflag) + h.Linkname
		}
		m.containers[id].files["/"+h.Name] = text
	}
}

func (m *machine) Commit(_ context.Context, id string) (string, error) {
	m.made++
	image := fmt.Sprint("i", m.made)
	m.images[image] = m.containers[id].files
	return image, nil
}

func (m *machine) Remove(_ context.Context, id string) error {
	delete(m.containers, id)
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// file is one of a tar. Its content begins with -> for a symlink, with => for a hard
// link; it is / for a directory.
type file struct{ name, content string }

func tarOf(t *testing.T, files ...file) io.Reader {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o640, Uid: 7, Gid: 7, Size: int64(len(f.content))}
		if to, ok := strings.CutPrefix(f.content, "->"); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, to, 0
		} else if to, ok := strings.CutPrefix(f.content, "=>"); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, to, 0
		} else if f.content == "/" {
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o750, 0
		}
		must(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, err := io.WriteString(w, f.content)
			must(t, err)
		}
	}
	must(t, w.Close())
	return &buf
}

// build builds on m and returns what was told.
func build(t *testing.T, m *machine, text string, more ...file) (*dockerfile.Image, string, error) {
	t.Helper()
	files, err := dockerfile.ReadFiles(t.TempDir(), tarOf(t, append([]file{{"Dockerfile", text}}, more...)...), 1<<20)
	if err != nil {
		return nil, "", err
	}
	defer func() { must(t, files.Close()) }()
	var said strings.Builder
	image, err := dockerfile.Build(t.Context(), m, files, dockerfile.Options{File: "Dockerfile", Dir: t.TempDir(), Max: 1 << 20, Say: func(line string) { fmt.Fprintln(&said, line) }})
	if len(m.containers) > 0 {
		t.Errorf("containers are left: %v", m.containers)
	}
	return image, said.String(), err
}

func TestADockerfile(t *testing.T) {
	m := newMachine(t)
	image, said, err := build(t, m, `# syntax=docker/dockerfile:1
ARG WHICH=ba
FROM ${WHICH}se AS first
LABEL devaipod.ci=5
ENV A=1 B="two words" C=${FROM}-$A
ENV C=$C.$A
ARG MODE=fast
WORKDIR /work/${MODE}
WORKDIR sub
RUN one
USER 5:6
RUN ["two", "arg"]
SHELL ["/bin/bash", "-ec"]
RUN <<EOF
a $HERE
b
EOF
COPY here.txt there/
CMD run $A
EXPOSE 80
VOLUME /x
`, file{"here.txt", "here"})
	must(t, err)
	env := `["PATH=/bin" "FROM=base" "A=1" "B=two words" "C=base-.1" "MODE=fast"]`
	if want := []string{
		`["/bin/sh" "-c" "one"] ` + env + ` as "nobody" in "/work/fast/sub"`, `["two" "arg"] ` + env + ` as "5:6" in "/work/fast/sub"`,
		`["/bin/bash" "-ec" "a $HERE\nb\n"] ` + env + ` as "5:6" in "/work/fast/sub"`,
	}; !slices.Equal(m.ran, want) {
		t.Errorf("ran\n%s\nwant\n%s", strings.Join(m.ran, "\n"), strings.Join(want, "\n"))
	}
	if got, want := fmt.Sprintf("%q", image.Config), `{["PATH=/bin" "FROM=base" "A=1" "B=two words" "C=base-.1"] ["/base"] ["/bin/bash" "-ec" "run $A"] "5:6" "/work/fast/sub"}`; got != want {
		t.Errorf("the image is %s, want %s", got, want)
	}
	files := m.images[image.ID]
	if files["/work/fast/sub/there/here.txt"] != "0:0 640 here" || len(m.images) != 2+3 {
		t.Errorf("%d images, the last with %q", len(m.images), files)
	}
	for _, want := range []string{"Step 1/16: FROM ${WHICH}se AS first\n", "Step 8/16: RUN one\nrunning\none\n"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in\n%s", want, said)
		}
	}
}

func TestWhatAnImageRuns(t *testing.T) {
	for text, want := range map[string]string{
		"FROM base":                                   "[/base] [of base]",
		"FROM base\nENTRYPOINT [\"/x\"]":              "[/x] []",
		"FROM base\nCMD [\"y\"]\nENTRYPOINT [\"/x\"]": "[/x] [y]",
		"FROM base\nENTRYPOINT []":                    "[] []",
		"FROM base\nENTRYPOINT x y":                   "[/bin/sh -c x y] []",
		"FROM scratch":                                "[] []",
	} {
		image, _, err := build(t, newMachine(t), text)
		must(t, err)
		if got := fmt.Sprint(image.Entrypoint, image.Cmd); got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
}

func TestWhatIsCopied(t *testing.T) {
	tree := []file{
		{"a.txt", "a"}, {"b.txt", "b"}, {"d", "/"}, {"d/one", "1"}, {"d/sub/two", "2"}, {"d/link", "->../a.txt"}, {"d/hard", "=>d/one"},
		{"to-a", "->/a.txt"}, {"to-d", "->d"}, {"secret", "s"}, {".dockerignore", "secret\n*.log\n"}, {"x.log", "x"}, {"./dot/f", "f"},
	}
	for copying, want := range map[string]string{
		"COPY a.txt /new":                       "/new=0:0 640 a",
		"COPY a.txt /new/":                      "/new/a.txt=0:0 640 a",
		"COPY a.txt /opt":                       "/opt/a.txt=0:0 640 a",
		"COPY a.txt .":                          "/opt/a.txt=0:0 640 a",
		"COPY *.txt /n":                         "/n/a.txt=0:0 640 a,/n/b.txt=0:0 640 b",
		"COPY a.txt d /n/":                      "/n/a.txt=0:0 640 a,/n/hard=1n/one,/n/link=2../a.txt,/n/one=0:0 640 1,/n/sub/two=0:0 640 2",
		"COPY d /opt":                           "/opt/hard=1opt/one,/opt/link=2../a.txt,/opt/one=0:0 640 1,/opt/sub/two=0:0 640 2",
		"COPY d/sub /new":                       "/new/two=0:0 640 2",
		"COPY to-a /new":                        "/new=0:0 640 a",
		"COPY to-d/one /new":                    "/new=0:0 640 1",
		"COPY d/link /new":                      "/new=0:0 640 a",
		"COPY ../../../a.txt /new":              "/new=0:0 640 a",
		"COPY dot/f /new":                       "/new=0:0 640 f",
		"COPY --chown=5 --chmod=755 a.txt /new": "/new=5:5 755 a",
		"ADD --chown=root:8 a.txt /new":         "/new=0:8 640 a",
		"ENV X=hi\nCOPY <<E /opt/\nis $X\nE":    "/opt/E=0:0 644 is hi\n",
		"COPY <<\"E\" /e\nis $X\nE":             "/e=0:0 644 is $X\n",
		"COPY --from=base /etc/motd /opt/":      "/opt/motd=0:0 755 hello",
		"RUN r\nCOPY a.txt /ran":                "/ran/a.txt=0:0 640 a,/ran/r=",
		"FROM base AS two\nCOPY --from=0 /s /t": "/t=0:0 755 a",
	} {
		m := newMachine(t)
		image, _, err := build(t, m, "FROM base\n"+strings.Replace(copying, "FROM base AS two", "COPY a.txt /s\nFROM base AS two", 1), tree...)
		if err != nil {
			t.Errorf("%s: %v", copying, err)
			continue
		}
		var got []string
		for name, text := range m.images[image.ID] {
			if _, ok := m.images["base"][name]; !ok && !strings.HasSuffix(name, "/") {
				got = append(got, name+"="+text)
			}
		}
		slices.Sort(got)
		if strings.Join(got, ",") != want {
			t.Errorf("%s: %s, want %s", copying, strings.Join(got, ","), want)
		}
	}
}

func TestWhatADockerfileMayNot(t *testing.T) {
	bomb := "ENV A=" + strings.Repeat("x", 1000) + "\n" + strings.Repeat("ENV A=$A$A\n", 40)
	tree := []file{{"loop", "->loop"}, {"out", "->../../etc/passwd"}, {"d/hard", "=>a.txt"}, {"a.txt", "a"}, {"a.tar.gz", "a"}}
	for text, want := range map[string]string{
		"":                                   "file with no instructions",
		"RUN x":                              "no build stage in current context",
		"FROM not-for-jobs":                  "FROM not-for-jobs: jobs may not use it",
		"FROM --platform=windows/amd64 base": "FROM --platform=windows/amd64: there is only linux/",
		"FROM base\nNONSENSE":                "unknown instruction",
		"FROM base\nRUN fail":                "RUN fail: the command ended with 3",
		"FROM base\nRUN --mount=type=bind,target=/x ls":            "RUN --mount is not possible in a job",
		"FROM base\nRUN --network=host ls":                         "RUN --network is not possible in a job",
		"FROM base\nRUN --network=none ls":                         "RUN --network is not possible in a job",
		"FROM base\nRUN --security=insecure ls":                    "security",
		"FROM base\nRUN --device=x ls":                             "device",
		"FROM base\nADD https://example.com/x /x":                  "ADD of an address (https://example.com/x) is not possible in a job",
		"FROM base\nADD git@example.com:x /x":                      "ADD of an address (git@example.com:x) is not possible in a job",
		"FROM base\nARG U=http://h\nADD $U/x /x":                   "ADD of an address (http://h/x) is not possible in a job",
		"FROM base\nADD a.tar.gz /x":                               "ADD does not unpack an archive (a.tar.gz) here",
		"FROM base\nADD --keep-git-dir=true a /x":                  "of ADD only what COPY can do",
		"FROM base\nCOPY nothing /x":                               "nothing is not among the files of the build",
		"FROM base\nCOPY no* /x":                                   "no* matches none of the files of the build",
		"FROM base\nCOPY " + strings.Repeat("a.txt ", 257) + "/x/": "it names 257 sources",
		"FROM base\nCOPY loop /x":                                  "loop: too many symbolic links",
		"FROM base\nCOPY out /x":                                   "out is not among the files of the build",
		"FROM base\nCOPY d /x":                                     "d/hard is a hard link to a.txt, which is not copied with it",
		"FROM base\nCOPY --chown=bob a.txt /x":                     "--chown=bob: want numbers",
		"FROM base\nCOPY --chmod=a+x a.txt /x":                     "--chmod=a+x: want an octal number",
		"FROM base\nCOPY --from=other /a /x":                       "--from=other: jobs may not use it",
		"FROM base\nCOPY --from=base /none /x":                     "it holds no file or folder of that name",
		"FROM base\nRUN <<E\n#!/bin/x\nE":                          "a script that begins with #! is not possible here",
		"FROM base\n" + bomb:                                       "with its variables it has more than 32768 bytes",
		"FROM base\nENV A=" + strings.Repeat("x", 9000) + "\nENV " + strings.Repeat("B=$A ", 200): "all words have more than 1048576 bytes",
		"FROM base\nENV A=" + strings.Repeat("$A", 257):                                           "at most 256 variables",
		"FROM base\nENV A=xxxx B=${A//x/${A//x/y}}":                                               "no ${NAME/…}",
		strings.Repeat("FROM base\n", 17):                                                         "has 17 stages",
		"FROM base\n" + strings.Repeat("USER x\n", 200):                                           "201 steps",
		"FROM base\n#" + strings.Repeat("x", 64<<10):                                              "Dockerfile has more than 65536 bytes",
		"FROM base\nENV A=\x00":                                                                   "Dockerfile is no text",
	} {
		if _, _, err := build(t, newMachine(t), text, tree...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
}

func TestFilesAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		from io.Reader
		want string
	}{
		"too many bytes":  {tarOf(t, file{"Dockerfile", strings.Repeat("x", 5000)}), "more than 0 MiB"},
		"too long a name": {tarOf(t, file{strings.Repeat("x/", 600), "/"}), "name of more than 1024 bytes"},
		"no tar":          {strings.NewReader(strings.Repeat("nonsense", 512)), "reading the files of the build"},
	} {
		if _, err := dockerfile.ReadFiles(t.TempDir(), c.from, 4096); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := build(t, newMachine(t), "FROM base\nCOPY a /a", file{".dockerignore", strings.Repeat("x\n", 257)}, file{"a", "a"}); err == nil || !strings.Contains(err.Error(), "more than 256 lines") {
		t.Errorf("a long .dockerignore: %v", err)
	}
}

func TestALongLineOfOutput(t *testing.T) {
	long := strings.Repeat("x", 20_000)
	_, said, err := build(t, newMachine(t), "FROM base\nRUN "+long)
	must(t, err)
	for line := range strings.Lines(said) {
		if len(line) > 8<<10+1 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	if strings.Count(said, "x") < 20_000 {
		t.Error("not all of it is told")
	}
}
