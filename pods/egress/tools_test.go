package egress_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/egress"
)

// A toolbox runs real programs that know of the proxy what ProxyEnv tells, in a
// home of their own.
type toolbox struct {
	*world
	home   string
	caFile string
}

func newToolbox(t *testing.T, patterns ...string) *toolbox {
	b := &toolbox{world: newWorld(t, nil, patterns...), home: t.TempDir()}
	b.caFile = filepath.Join(b.home, "ca.pem")
	if err := os.WriteFile(b.caFile, certOf(t, b.origins), 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// run returns what a program wrote to either output.
func (b *toolbox) run(env []string, name string, args ...string) (string, error) {
	b.t.Helper()
	cmd := exec.CommandContext(b.t.Context(), name, args...)
	cmd.Dir = b.home
	cmd.Env = append([]string{"HOME=" + b.home, "PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}, env...)
	for k, v := range egress.ProxyEnv(b.addr, token, b.caFile) {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// works wants success, and words in what was said.
func (b *toolbox) works(words string, env []string, name string, args ...string) {
	b.t.Helper()
	if out, err := b.run(env, name, args...); err != nil || !strings.Contains(out, words) {
		b.t.Errorf("%s %s: %v\n%s\nlacks %q", name, strings.Join(args, " "), err, out, words)
	}
}

// fails wants a failure that says these words.
func (b *toolbox) fails(words string, env []string, name string, args ...string) {
	b.t.Helper()
	out, err := b.run(env, name, args...)
	if exit := new(exec.ExitError); !errors.As(err, &exit) || !strings.Contains(out, words) {
		b.t.Errorf("%s %s: %v\n%s\nlacks %q", name, strings.Join(args, " "), err, out, words)
	}
	if strings.Contains(out, token) {
		b.t.Errorf("%s %s shows the token: %s", name, strings.Join(args, " "), out)
	}
}

func (b *toolbox) write(path, text string) {
	b.t.Helper()
	path = filepath.Join(b.home, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		b.t.Fatal(err)
	}
}

// files serves what it has by path.
func files(all map[string]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := all[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if strings.HasPrefix(text, "{") {
			w.Header().Set("Content-Type", "application/json")
		} else if strings.HasPrefix(text, "<") {
			w.Header().Set("Content-Type", "text/html")
		}
		_, _ = io.WriteString(w, text) // the client tells
	})
}

func tarball(t *testing.T, files map[string]string) string {
	t.Helper()
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	w := tar.NewWriter(gz)
	for name, text := range files {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg})
		if _, werr := io.WriteString(w, text); err != nil || werr != nil {
			t.Fatal(err, werr)
		}
	}
	if err := errors.Join(w.Close(), gz.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func zipped(t *testing.T, files map[string]string) string {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, text := range files {
		f, err := w.Create(name)
		if err == nil {
			_, err = io.WriteString(f, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestCurlGoesThroughTheProxy(t *testing.T) {
	b := newToolbox(t, "a.example.com")
	b.site("a.example.com", files(map[string]string{"/": "hello"}))
	b.works("hello", nil, "curl", "-sS", "https://a.example.com/")
	b.works("hello", nil, "curl", "-sS", "http://a.example.com/")
	const why = "devaipod: evil.example.net:443 is blocked: it is not on the list of hosts that this pod may reach. A person can allow it with the comment /allow evil.example.net on the issue"
	b.fails("403", nil, "curl", "-sS", "https://evil.example.net/")
	b.fails("HTTP/1.1 403 "+why, nil, "curl", "-sS", "--include", "https://evil.example.net/")
	b.works(strings.ReplaceAll(why, ":443", ":80"), nil, "curl", "-sS", "http://evil.example.net/")
	// curl has the right name for CONNECT and another one for TLS.
	b.fails("alert", nil, "curl", "-sS", "--connect-to", "evil.example.net:443:a.example.com:443", "https://evil.example.net/")
	if all := b.proxy.Blocked(); all[0].Host != "a.example.com" || !strings.Contains(all[0].Why, "TLS asks for another host, evil.example.net") {
		t.Errorf("noted as %+v", all[0])
	}
}

func TestGitClonesThroughTheProxy(t *testing.T) {
	b := newToolbox(t, "git.example.com")
	backend, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	b.site("git.example.com", &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(backend)), "git-http-backend"), Root: "/",
		Env: []string{"GIT_PROJECT_ROOT=" + b.home, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	})
	b.write("src/file", strings.Repeat("a line\n", 100_000))
	who := []string{"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com"}
	b.works("", who, "git", "init", "-q", "src")
	b.works("", who, "git", "-C", "src", "add", ".")
	b.works("", who, "git", "-C", "src", "commit", "-q", "-m", "one")
	b.works("", nil, "git", "clone", "-q", "https://git.example.com/src/.git", "copy")
	got, err := os.ReadFile(filepath.Join(b.home, "copy/file"))
	if err != nil || len(got) != 700_000 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	b.fails("403", nil, "git", "clone", "-q", "https://evil.example.net/src/.git", "evil")
}

func TestPackageManagersGoThroughTheProxy(t *testing.T) {
	b := newToolbox(t, "*.example.com")
	b.site("go.example.com", files(map[string]string{
		"/example.org/m/@v/v1.0.0.info": `{"Version":"v1.0.0"}`, "/example.org/m/@v/v1.0.0.mod": "module example.org/m\n",
		"/example.org/m/@v/v1.0.0.zip": zipped(t, map[string]string{"example.org/m@v1.0.0/go.mod": "module example.org/m\n"}),
	}))
	goEnv := []string{"GOSUMDB=off", "GOTOOLCHAIN=local", "GOTELEMETRY=off", "GOFLAGS=-modcacherw", "GOPATH=" + b.home + "/go"}
	b.works("v1.0.0.zip", append(goEnv, "GOPROXY=https://go.example.com"), "go", "mod", "download", "-json", "example.org/m@v1.0.0")
	b.fails("evil.example.net:443 is blocked", append(goEnv, "GOPROXY=https://evil.example.net"), "go", "mod", "download", "-json", "example.org/other@v1.0.0")

	b.site("npm.example.com", files(map[string]string{
		"/m":       `{"name":"m","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"m","version":"1.0.0","dist":{"tarball":"https://npm.example.com/m-1.tgz"}}}}`,
		"/m-1.tgz": tarball(t, map[string]string{"package/package.json": `{"name":"m","version":"1.0.0"}`}),
	}))
	npm := []string{"npm_config_update_notifier=false", "npm_config_audit=false", "npm_config_fund=false", "npm_config_fetch_retries=0"}
	b.works("added 1 package", append(npm, "npm_config_registry=https://npm.example.com/"), "npm", "install", "m")
	b.fails("403", append(npm, "npm_config_registry=https://evil.example.net/"), "npm", "view", "n", "version")
}

// These may not be on a machine; where they are, they are tried.
func TestOtherPackageManagersGoThroughTheProxy(t *testing.T) {
	b := newToolbox(t, "*.example.com")
	has := func(name string) bool {
		_, err := exec.LookPath(name)
		return err == nil
	}
	if has("pip") {
		const wheel = "m-1.0-py3-none-any.whl"
		b.site("pip.example.com", files(map[string]string{
			"/simple/m/": `<a href="/` + wheel + `">` + wheel + `</a>`,
			"/" + wheel: zipped(t, map[string]string{
				"m.py": "", "m-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: m\nVersion: 1.0\n",
				"m-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n", "m-1.0.dist-info/RECORD": "",
			}),
		}))
		pip := []string{"PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_RETRIES=0", "PYENV_VERSION=" + os.Getenv("PYENV_VERSION"), "PIP_NO_CACHE_DIR=1", "PIP_ROOT_USER_ACTION=ignore"}
		b.works("Saved ./"+wheel, append(pip, "PIP_INDEX_URL=https://pip.example.com/simple"), "pip", "download", "--no-deps", "m")
		b.fails("Tunnel connection failed: 403 devaipod: evil.example.net:443 is blocked", append(pip, "PIP_RETRIES=1", "PIP_INDEX_URL=https://evil.example.net/simple"), "pip", "download", "--no-deps", "n")
	}
	if has("cargo") {
		crate := tarball(t, map[string]string{"m-1.0.0/Cargo.toml": "[package]\nname = \"m\"\nversion = \"1.0.0\"\n", "m-1.0.0/src/lib.rs": ""})
		sum := sha256.Sum256([]byte(crate))
		b.site("cargo.example.com", files(map[string]string{
			"/index/config.json": `{"dl":"https://cargo.example.com/dl"}`, "/dl/m/1.0.0/download": crate,
			"/index/1/m": `{"name":"m","vers":"1.0.0","deps":[],"features":{},"yanked":false,"cksum":"` + hex.EncodeToString(sum[:]) + `"}` + "\n",
		}))
		b.write("crate/src/lib.rs", "")
		b.write("crate/Cargo.toml", "[package]\nname = \"c\"\nversion = \"1.0.0\"\n[dependencies]\nm = { version = \"1\", registry = \"mine\" }\n")
		cargo := []string{"CARGO_HOME=" + b.home + "/cargo", "RUSTUP_HOME=" + rustup(), "CARGO_NET_RETRY=0"}
		b.works("Downloaded m v1.0.0", append(cargo, "CARGO_REGISTRIES_MINE_INDEX=sparse+https://cargo.example.com/index/"), "cargo", "fetch", "--manifest-path", "crate/Cargo.toml")
		b.write("crate/Cargo.lock", "version = 4\n")
		b.fails("403", append(cargo, "CARGO_REGISTRIES_MINE_INDEX=sparse+https://evil.example.net/index/"), "cargo", "fetch", "--manifest-path", "crate/Cargo.toml")
	}
	if has("apt-get") {
		b.site("apt.example.com", files(map[string]string{"/./Packages": "Package: m\nVersion: 1.0\nArchitecture: all\nFilename: m.deb\nSize: 1\n\n"}))
		conf := egress.ProxyFiles(b.addr, token, b.caFile)["/etc/apt/apt.conf.d/90devaipod"]
		conf += fmt.Sprintf("Dir \"%s/apt\";\nDir::Etc::trusted \"/dev/null\";\nAPT::Sandbox::User \"\";\nAcquire::Languages \"none\";\nAcquire::Retries 0;\nDir::Bin::Methods \"/usr/lib/apt/methods\";\nDir::State::status \"/dev/null\";\n", b.home)
		b.write("apt.conf", conf)
		for _, dir := range []string{"apt/var/lib/apt/lists/partial", "apt/var/cache/apt/archives/partial", "apt/etc/apt/apt.conf.d", "apt/etc/apt/preferences.d"} {
			b.write(dir+"/x", "")
		}
		env := []string{"APT_CONFIG=" + b.home + "/apt.conf"}
		for _, scheme := range []string{"http", "https"} {
			b.write("apt/etc/apt/sources.list", "deb [trusted=yes] "+scheme+"://apt.example.com ./\n")
			b.works(" "+scheme+"://apt.example.com ./ Packages", env, "apt-get", "update", "--error-on=any")
			b.write("apt/etc/apt/sources.list", "deb [trusted=yes] "+scheme+"://evil.example.net ./\n")
			b.fails("403", env, "apt-get", "update", "--error-on=any")
			if err := os.RemoveAll(filepath.Join(b.home, "apt/var/lib/apt/lists/apt.example.com_._Packages")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if has("java") && has("keytool") {
		b.site("java.example.com", files(map[string]string{"/": "hello"}))
		b.write("Fetch.java", `import java.net.*;
class Fetch {
  public static void main(String[] a) throws Exception {
    Authenticator.setDefault(new Authenticator() {
      protected PasswordAuthentication getPasswordAuthentication() { return new PasswordAuthentication("devaipod", System.getenv("TOKEN").toCharArray()); }
    });
    System.out.write(new URL(a[0]).openStream().readAllBytes());
    System.out.flush();
  }
}`)
		b.works("", []string{"JAVA_TOOL_OPTIONS="}, "keytool", "-importcert", "-noprompt", "-file", "ca.pem", "-keystore", "trust.p12", "-storepass", "changeit")
		java := []string{"TOKEN=" + token}
		b.works("hello", java, "java", "Fetch.java", "http://java.example.com/")
		b.works("hello", java, "java", "-Djavax.net.ssl.trustStore=trust.p12", "-Djavax.net.ssl.trustStorePassword=changeit", "Fetch.java", "https://java.example.com/")
		b.fails("HTTP/1.1 403 devaipod: evil.example.net:443 is blocked", java, "java", "Fetch.java", "https://evil.example.net/")
	}
}

func rustup() string {
	if dir := os.Getenv("RUSTUP_HOME"); dir != "" {
		return dir
	}
	return os.Getenv("HOME") + "/.rustup"
}

func TestProxyFilesAreWellFormed(t *testing.T) {
	for _, odd := range []string{"", "t<&>\"k"} {
		all := egress.ProxyFiles("127.0.0.1:8099", odd, "/ca.pem")
		var settings struct {
			Proxies []struct {
				Protocol string `xml:"protocol"`
				Host     string `xml:"host"`
				Port     int    `xml:"port"`
				Username string `xml:"username"`
				Password string `xml:"password"`
			} `xml:"proxies>proxy"`
		}
		if err := xml.Unmarshal([]byte(all["~/.m2/settings.xml"]), &settings); err != nil {
			t.Fatal(err)
		}
		if len(settings.Proxies) != 2 {
			t.Fatalf("%+v", settings)
		}
		for _, p := range settings.Proxies {
			if p.Host != "127.0.0.1" || p.Port != 8099 || p.Password != odd || (p.Username == "") != (odd == "") {
				t.Errorf("%+v", p)
			}
		}
		if g := all["~/.gradle/gradle.properties"]; !strings.Contains(g, "systemProp.https.proxyHost=127.0.0.1\nsystemProp.https.proxyPort=8099\n") || strings.Contains(g, "proxyPassword") != (odd != "") {
			t.Errorf("gradle: %s", g)
		}
	}
	env := egress.ProxyEnv("127.0.0.1:8099", "", "")
	if env["https_proxy"] != "http://127.0.0.1:8099" || env["SSL_CERT_FILE"] != "" || env["NO_PROXY"] != "localhost,127.0.0.1,::1" {
		t.Errorf("%q", env)
	}
	if strings.Contains(egress.ProxyEnv("127.0.0.1:8099", token, "")["JAVA_TOOL_OPTIONS"], token) {
		t.Error("Java prints its options, and the token is among them")
	}
}
