package devcontainer_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/devcontainer"
)

var place = devcontainer.Place{
	File: ".devcontainer/devcontainer.json", Repo: "app", Clone: "/workspace/repo", ID: "devaipod-app-3",
	Reserved: []string{"/workspace", "/run/devaipod", "/.devaipod", "/proc"},
	OwnEnv:   []string{"DEVAIPOD_*", "HTTPS_PROXY"},
}

func parse(t *testing.T, text string) *devcontainer.Config {
	t.Helper()
	c, err := devcontainer.Parse([]byte(text), place)
	if err != nil {
		t.Fatalf("%s\n%v", text, err)
	}
	return c
}

// A file with all that a pod gives.
const whole = `// The service's own container.
{
	"$schema": "https://raw.githubusercontent.com/devcontainers/spec/main/schemas/devContainer.schema.json",
	"name": "app, for ${localWorkspaceFolderBasename}", /* a name */
	"build": {
		"dockerfile": "Containerfile",
		"context": "..",
		"target": "dev",
		"args": {"BASE": "debian", "WHO": "${localEnv:USER:nobody}"},
	},
	"containerEnv": {"ROOT": "${containerWorkspaceFolder}", "ID": "${devcontainerId}"},
	"remoteEnv": {"PATH": "${containerEnv:PATH}:/opt/bin", "EDITOR": null, "LANG": "${containerEnv:LANG:C.UTF-8}"},
	"remoteUser": "dev",
	"init": true,
	"updateRemoteUserUID": false,
	"userEnvProbe": "none",
	"overrideCommand": true,
	"shutdownAction": "stopContainer",
	"privileged": false,
	"capAdd": [],
	"mounts": [
		{"type": "volume", "source": "cache-${devcontainerId}", "target": "/home/dev/.cache"},
		"type=volume,source=Build Output,target=/var/build,readonly",
		"target=/scratch,type=tmpfs,tmpfs-size=1048576",
	],
	"workspaceFolder": "/workspace/repo/server",
	"forwardPorts": [3000, "localhost:8080", 3000],
	"portsAttributes": {"3000": {"label": "web", "protocol": "https", "onAutoForward": "silent", "requireLocalPort": true, "elevateIfNeeded": false}},
	"otherPortsAttributes": {"onAutoForward": "ignore"},
	"postStartCommand": ["server", "--port", "3000"],
	"onCreateCommand": "make deps && echo ${HOME}",
	"updateContentCommand": {"one": "make one", "two": ["make", "two"]},
	"postCreateCommand": "true",
	"postAttachCommand": "git status",
	"waitFor": "postCreateCommand",
	"hostRequirements": {"cpus": 2, "memory": "8gb", "storage": "32gb", "gpu": "optional"},
	"customizations": {
		"vscode": {"extensions": ["golang.go"]},
		"devaipod": {"agent": {
			"lifecycle": ["onCreateCommand"], "setup": ["make tools", ["make", "more"]], "required": true,
			"environment": ["FLAVOUR"], "allow": ["preset:go"], "checks": ["make test"],
		}},
	},
}
`

func TestAFileIsReadWhole(t *testing.T) {
	c := parse(t, whole)
	want := []string{"${localEnv:USER}: the environment of the service's machine is not for pods; its default counts, or nothing"}
	if !slices.Equal(c.Unsupported, want) {
		t.Errorf("unsupported: %q", c.Unsupported)
	}
	id := c.ContainerEnv["ID"]
	if len(id) != 52 || strings.Trim(id, "0123456789abcdefghijklmnopqrstuv") != "" {
		t.Errorf("id %q", id)
	}
	c.Unsupported, c.ContainerEnv["ID"] = nil, "ID"
	got, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "whole.json")
	expected, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got)+"\n" != string(expected) {
		t.Errorf("got\n%s\nwant as %s", got, golden)
	}
}

// As the reference's tables have them, property by property.
func TestWhatDoesNotHoldIsNamedOnce(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{`{"privileged": true}`, "privileged: refused"},
		{`{"capAdd": ["SYS_PTRACE"]}`, "capAdd: refused"},
		{`{"securityOpt": ["seccomp=unconfined"]}`, "securityOpt: refused"},
		{`{"runArgs": ["--network=host", "--device=/dev/kvm"]}`, "runArgs: refused"},
		{`{"overrideCommand": false}`, "overrideCommand: the image's own command is not run"},
		{`{"shutdownAction": "none"}`, "shutdownAction: a pod ends when its issue does"},
		{`{"userEnvProbe": "loginShell"}`, "userEnvProbe: profiles of shells are not read"},
		{`{"appPort": [8000, "8000:8010"]}`, "appPort: refused; no port of a pod is published: use forwardPorts"},
		{`{"appPort": 8000}`, "appPort: refused"},
		{`{"forwardPorts": ["db:5432"]}`, "forwardPorts: db:5432: refused; a pod has no other services"},
		{`{"features": {"ghcr.io/devcontainers/features/go:1": {"version": "1.26"}}}`, "features.ghcr.io/devcontainers/features/go:1: features come in a later version"},
		{`{"overrideFeatureInstallOrder": ["a"]}`, "overrideFeatureInstallOrder: features come in a later version"},
		{`{"initializeCommand": "rm -rf ~"}`, "initializeCommand: never run: it would run on the machine of the service"},
		{`{"initializeCommand": {"a": ["b"]}}`, "initializeCommand: never run"},
		{`{"dockerComposeFile": ["a.yml", "b.yml"], "service": "app", "runServices": ["db"]}`, "dockerComposeFile: refused; a pod has one image"},
		{`{"secrets": {"KEY": {"description": "a key"}}}`, "secrets: none is made of this"},
		{`{"build": {"dockerfile": "D", "cacheFrom": "ghcr.io/a/b"}}`, "build.cacheFrom: builds use the cache of this machine only"},
		{`{"build": {"dockerfile": "D", "options": ["--network=host"]}}`, "build.options: refused"},
		{`{"build": {"dockerfile": "D", "pull": true}}`, "build.pull: no property"},
		{`{"mounts": ["type=bind,source=/,target=/host"]}`, "mounts[0]: type=bind is refused, /host"},
		{`{"mounts": [{"type": "bind", "source": "/var/run/docker.sock", "target": "/var/run/docker.sock"}]}`, "mounts[0]: type=bind is refused"},
		{`{"mounts": ["source=/etc,target=/host"]}`, "mounts[0]: refused, /host: the source /etc is a path"},
		{`{"mounts": ["source=x,target=/workspaces/app/node_modules"]}`, "mounts[0]: refused, /workspaces/app/node_modules: it is in the clone"},
		{`{"mounts": ["source=x,target=/workspace"]}`, "mounts[0]: refused, /workspace: /workspace is the pod's"},
		{`{"mounts": ["source=x,target=/run"]}`, "mounts[0]: refused, /run: /run/devaipod is the pod's"},
		{`{"mounts": ["source=x,target=/x,volume-opt=o=bind,volume-driver=local"]}`, "mounts[0]: refused, /x: the options volume-opt, volume-driver are not known"},
		{`{"workspaceMount": "source=/home,target=/home,type=bind"}`, "workspaceMount: refused; the clone is on a volume"},
		{`{"workspaceFolder": "/src"}`, "workspaceFolder: refused, /src: the clone is at /workspace/repo"},
		{`{"remoteUser": "root"}`, "remoteUser: refused; nothing in a pod runs as root"},
		{`{"remoteUser": "dev"}`, "remoteUser: the file names no image"},
		{`{"build": {"dockerfile": "Dockerfile"}, "containerUser": "vscode", "remoteUser": "dev"}`, "containerUser: a pod's containers have one user: remoteUser, dev"},
		{`{"containerEnv": {"PATH": "${containerEnv:PATH}:/x"}}`, "containerEnv.PATH: ${containerEnv:…} is not known"},
		{`{"containerEnv": {"DEVAIPOD_TOKEN": "x"}}`, "containerEnv.DEVAIPOD_TOKEN: the pod sets this one itself"},
		{`{"remoteEnv": {"HTTPS_PROXY": null}}`, "remoteEnv.HTTPS_PROXY: the pod sets this one itself"},
		{`{"remoteEnv": {"A": "${localEnv:HOME}${localEnv:HOME}"}}`, "${localEnv:HOME}: the environment of the service's machine is not for pods"},
		{`{"hostRequirements": {"disks": 2}}`, "hostRequirements.disks: no property"},
		{`{"portsAttributes": {"3000": {"color": "red"}}}`, "portsAttributes.3000.color: no property"},
		{`{"customizations": {"devaipod": {"agents": {}}}}`, "customizations.devaipod.agents: no property"},
		{`{"customizations": {"devaipod": {"agent": {"run": "x"}}}}`, "customizations.devaipod.agent.run: no property"},
		{`{"postCreateComand": "x"}`, "postCreateComand: no property"},
		{`{"Image": "debian"}`, "Image: no property"},
		{"{\"a\\u0007b\": 1}", `"a\ab": no property`},
	} {
		c := parse(t, tt.text)
		if len(c.Unsupported) != 1 || !strings.HasPrefix(c.Unsupported[0], tt.want) {
			t.Errorf("%s: said %q, want %q", tt.text, c.Unsupported, tt.want)
		}
		if len(c.Mounts) > 0 || c.Image != "" {
			t.Errorf("%s: %+v", tt.text, c)
		}
	}
}

func TestMistakesAreNamedWithTheirLine(t *testing.T) {
	long := `{"name": "` + strings.Repeat("x", 17<<10) + `"}`
	for _, tt := range []struct{ text, want string }{
		{`{"image": "debian" "name": "x"}`, "line 1, column 20"},
		{``, "unexpected EOF"},
		{`[]`, "want an object"},
		{"{\n\"image\": 3\n}", `line 2: image: want a text`},
		{`{"image": "-v"}`, "image: want the name of an image"},
		{`{"image": "a b"}`, "image: want the name of an image"},
		{`{"image": "java:${templateOption:variant}"}`, "image: want the name of an image"},
		{`{"image": "a", "image": "b"}`, "image: it is there twice"},
		{`{"image": "a", "build": {"dockerfile": "b"}}`, "image, build and dockerComposeFile: want one of them"},
		{`{"build": {}}`, "want build.dockerfile"},
		{`{"build": {"target": "x"}}`, "want build.dockerfile"},
		{`{"build": {"dockerfile": "../../x"}}`, "build.dockerfile: ../../x: want a path within the repository"},
		{`{"build": {"dockerfile": "/etc/passwd"}}`, "want a path within the repository"},
		{`{"build": {"dockerfile": "D", "context": "../.."}}`, "build.context: ../..: want a path within the repository"},
		{`{"build": {"dockerfile": "D", "args": {"A": 1}}}`, "build.args.A: want a text"},
		{`{"context": "x"}`, "context: want dockerFile beside it"},
		{`{"service": "x"}`, "service: want dockerComposeFile beside it"},
		{`{"containerEnv": {"A B": "x"}}`, "containerEnv.A B: want a name of letters"},
		{`{"containerEnv": {"A": null}}`, "containerEnv.A: want a text"},
		{`{"containerEnv": ["A=B"]}`, "containerEnv: want an object"},
		{`{"remoteUser": "a b"}`, "remoteUser: want the name or number"},
		{`{"mounts": ["source=x,target=relative"]}`, "target relative: want an absolute path"},
		{`{"mounts": ["source=x,target=/a/../b"]}`, "target /a/../b: want an absolute path"},
		{`{"mounts": ["source=x,target=/a", "source=y,target=/a/"]}`, "target /a: it is there twice"},
		{`{"mounts": ["\"source=x"]}`, `mounts[0]: want "type=volume`},
		{`{"mounts": ["type=tmpfs,target=/a,tmpfs-size=-1"]}`, "tmpfs-size: want a number of bytes"},
		{`{"workspaceFolder": "src"}`, "workspaceFolder: want an absolute path"},
		{`{"forwardPorts": [0]}`, "forwardPorts: want a whole number from 1 to 65535"},
		{`{"forwardPorts": [1.5]}`, "forwardPorts: want a whole number"},
		{`{"forwardPorts": ["web"]}`, "forwardPorts: web: want a port"},
		{`{"portsAttributes": {"1": {"protocol": "ftp"}}}`, "want one of http, https"},
		{`{"postCreateCommand": 1}`, "postCreateCommand: want a text, or a list"},
		{`{"postCreateCommand": {"a": {"b": "c"}}}`, "postCreateCommand.a: want a text, or a list"},
		{`{"postCreateCommand": [["a"]]}`, "postCreateCommand: want a text"},
		{`{"postCreateCommand": ["", "a"]}`, "postCreateCommand: want a program first"},
		{`{"postCreateCommand": "a\u0000b"}`, "a text with the character 0"},
		{`{"waitFor": "postAttachCommand"}`, "waitFor: want one of initializeCommand, onCreateCommand"},
		{`{"hostRequirements": {"cpus": 0}}`, "hostRequirements.cpus: want a whole number from 1"},
		{`{"hostRequirements": {"memory": "8 GiB"}}`, "hostRequirements.memory: want an amount"},
		{`{"hostRequirements": {"memory": "999999999999999tb"}}`, "hostRequirements.memory: that is more"},
		{`{"hostRequirements": {"gpu": "yes"}}`, "hostRequirements.gpu: want one of optional"},
		{`{"customizations": {"devaipod": {"agent": {"lifecycle": ["postAttachCommand"]}}}}`, "lifecycle: want one of onCreateCommand"},
		{`{"customizations": {"devaipod": {"agent": {"environment": ["A=B"]}}}}`, "environment: want names of variables"},
		{`{"init": "yes"}`, "init: want true or false"},
		{long, "a text of 17408 bytes; want at most 16384"},
		{strings.Repeat(" ", 65<<10), "it is 66560 bytes long; want at most 65536"},
		{`{"x": ` + strings.Repeat("[", 30000), "nested more than 20 deep"},
		{`{"x": [` + strings.Repeat("0,", 5000) + `]}`, "values; want at most 4000"},
		{`{"capAdd": [` + strings.Repeat(`"a",`, 101) + `]}`, "capAdd: it has 101 entries; want at most 100"},
	} {
		_, err := devcontainer.Parse([]byte(tt.text), place)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), place.File+": ") {
			t.Errorf("%.100s: error %v, want %q", tt.text, err, tt.want)
		}
	}
}

func TestAFileThatIsAlmostEmptyLeavesTheRestToThePod(t *testing.T) {
	c := parse(t, "\uFEFF{} // nothing")
	want := &devcontainer.Config{File: place.File, WorkspaceFolder: "/workspace/repo", Lifecycle: devcontainer.Lifecycle{WaitFor: "updateContentCommand"}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v", c)
	}
}

func TestOldNamesOfTheBuildAreRead(t *testing.T) {
	c := parse(t, `{"context": "..", "dockerFile": "../Dockerfile", "build": {"target": "dev"}}`)
	if want := (&devcontainer.Build{Dockerfile: "Dockerfile", Context: ".", Target: "dev"}); !reflect.DeepEqual(c.Build, want) || len(c.Unsupported) > 0 {
		t.Errorf("%+v, %q", c.Build, c.Unsupported)
	}
}

func TestTheWorkspaceFolderIsInTheClone(t *testing.T) {
	mount := `"workspaceMount": "source=${localWorkspaceFolder},target=/src/${localWorkspaceFolderBasename},type=bind,consistency=cached"`
	for _, tt := range []struct{ file, text, want string }{
		{".devcontainer/devcontainer.json", `{}`, "/workspace/repo"},
		{".devcontainer.json", `{}`, "/workspace/repo"},
		{".devcontainer/go/devcontainer.json", `{}`, "/workspace/repo"},
		{"services/api/.devcontainer/devcontainer.json", `{}`, "/workspace/repo/services/api"},
		{"services/api/.devcontainer.json", `{"workspaceFolder": "/workspaces/api/cmd"}`, "/workspace/repo/services/api/cmd"},
		{".devcontainer.json", `{"workspaceFolder": "/workspaces/app"}`, "/workspace/repo"},
		{".devcontainer.json", `{"workspaceFolder": "/workspaces/${localWorkspaceFolderBasename}/web"}`, "/workspace/repo/web"},
		{".devcontainer.json", `{` + mount + `, "workspaceFolder": "/src/app/web"}`, "/workspace/repo/web"},
		{".devcontainer.json", `{` + mount + `, "workspaceFolder": "/workspaces/app/web"}`, "/workspace/repo"},
		{".devcontainer.json", `{"workspaceFolder": "/workspaces/app/../../etc"}`, "/workspace/repo"},
		{".devcontainer.json", `{"workspaceFolder": "/workspace/repo/../other"}`, "/workspace/repo"},
	} {
		p := place
		p.File = tt.file
		c, err := devcontainer.Parse([]byte(tt.text), p)
		if err != nil || c.WorkspaceFolder != tt.want {
			t.Errorf("%s: %s: %+v, %v, want %s", tt.file, tt.text, c, err, tt.want)
		}
	}
}

func TestVariablesOfTheHostNeverReachAPod(t *testing.T) {
	t.Setenv("HOST_SECRET", "hush")
	for _, s := range []string{"${localEnv:HOST_SECRET}", "${env:HOST_SECRET}", "${localEnv:HOST_SECRET:}", "$${localEnv:HOST_SECRET}", "${localEnv:HOST_SECRET:${localEnv:HOST_SECRET}}"} {
		c := parse(t, fmt.Sprintf(`{"name": %q, "image": "x", "containerEnv": {"A": %q}, "remoteEnv": {"A": %q}, "postCreateCommand": %q}`, s, s, s, s))
		if text, err := json.Marshal(c); err != nil || strings.Contains(string(text), "hush") {
			t.Errorf("%s: %s, %v", s, text, err)
		}
	}
}

func TestTheContainersVariablesAreReplacedThere(t *testing.T) {
	env := map[string]string{"PATH": "/bin", "TRICK": "${containerEnv:PATH}"}
	for s, want := range map[string]string{
		"${containerEnv:PATH}:/x":                    "/bin:/x",
		"${containerEnv:NONE}":                       "",
		"${containerEnv:NONE:some/default}":          "some/default",
		"${containerEnv:TRICK}":                      "${containerEnv:PATH}",
		"${PATH} $PATH ${x:-y} ${containerEnv:PATH}": "${PATH} $PATH ${x:-y} /bin",
		"${localEnv:PATH}":                           "${localEnv:PATH}",
		"${containerEnv:NO:a:b} ${containerEnv} ${}": "a:b ${containerEnv} ${}",
	} {
		if got := devcontainer.Expand(s, func(name string) string { return env[name] }); got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
}

func TestTheShellsVariablesStay(t *testing.T) {
	s := "echo ${env} ${env:-x} ${localEnv:1} ${HOME} $HOME ${x%%y} ${devcontainerId:x}"
	c := parse(t, fmt.Sprintf(`{"postCreateCommand": %q}`, s))
	if got := c.Lifecycle.Stages[0].Commands[0].Shell; got != s || len(c.Unsupported) > 0 {
		t.Errorf("%q, %q", got, c.Unsupported)
	}
}

func TestHostRequirementsNameWhatIsLacking(t *testing.T) {
	h := parse(t, `{"hostRequirements": {"cpus": 4, "memory": "8gb", "storage": "1024", "gpu": {"cores": 2, "memory": "4gb"}}}`).HostRequirements
	if h.Check(devcontainer.Limits{CPUs: 4, Memory: 8 << 30, Storage: 1024, GPU: true}) != nil {
		t.Error("all is there")
	}
	if h.Check(devcontainer.Limits{GPU: true}) != nil {
		t.Error("nothing is known")
	}
	err := h.Check(devcontainer.Limits{CPUs: 1.5, Memory: 4 << 30, Storage: 1023})
	want := "hostRequirements: cpus: 4 are wanted, 1.5 are there; memory: 8 GiB are wanted, 4 GiB are there; storage: 1 KiB are wanted, 1023 bytes are there; gpu: pods have none"
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v", err)
	}
}

func TestAPodsVolumesHaveNamesOfTheirOwn(t *testing.T) {
	c := parse(t, `{"mounts": ["source=Cache,target=/a", "source=cache,target=/b", "target=/c", "source=../x y,target=/d", "source=--x,target=/e", "source=cache,target=/f"]}`)
	seen := map[string]int{}
	for _, m := range c.Mounts {
		seen[m.Source]++
		if strings.Trim(m.Source, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || m.Source[0] == '-' || len(m.Source) > 40 {
			t.Errorf("%+v", m)
		}
	}
	// The same source is the same volume; a path is none.
	if len(c.Mounts) != 5 || len(seen) != 4 || len(c.Unsupported) != 1 {
		t.Errorf("%v, %q", seen, c.Unsupported)
	}
}

func TestMuchThatDoesNotHoldIsCutShort(t *testing.T) {
	var b strings.Builder
	for i := range 500 {
		fmt.Fprintf(&b, "%q: 0,", fmt.Sprintf("x%d", i))
	}
	if c := parse(t, "{"+b.String()+"}"); len(c.Unsupported) != 51 || c.Unsupported[50] != "and more" {
		t.Errorf("%d", len(c.Unsupported))
	}
}

func TestWhereAFileMayBe(t *testing.T) {
	for folder, want := range map[string][]string{
		".":                            {".devcontainer/devcontainer.json", ".devcontainer.json"},
		"services/api":                 {"services/api/.devcontainer/devcontainer.json", "services/api/.devcontainer.json"},
		".devcontainer/go":             {".devcontainer/go/devcontainer.json"},
		"x/.devcontainer/go":           {"x/.devcontainer/go/devcontainer.json"},
		".devcontainer/go/other.json":  {".devcontainer/go/other.json"},
		"./x/../.devcontainer/go/":     {".devcontainer/go/devcontainer.json"},
		"services/.devcontainer.json/": {"services/.devcontainer.json/.devcontainer/devcontainer.json", "services/.devcontainer.json/.devcontainer.json"},
	} {
		if got := devcontainer.Candidates(folder); !slices.Equal(got, want) {
			t.Errorf("%s: %q", folder, got)
		}
	}
}

// The documentation has each property, and no other.
func TestTheDocumentationHasEachProperty(t *testing.T) {
	text, err := os.ReadFile("../../docs/devcontainer.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## Properties")
	table, _, _ = strings.Cut(table, "\n## ")
	var rows []string
	for _, line := range strings.Split(table, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		for _, name := range strings.Split(cells[1], ",") {
			if name = strings.Trim(name, " `"); !strings.ContainsAny(name, ".[ -") && name != "property" {
				rows = append(rows, name)
			}
		}
		if s := strings.TrimSpace(cells[2]); cells[1] != " property " && !strings.HasPrefix(cells[1], "--") && s != "supported" && s != "partly" && s != "refused" && s != "ignored" && s != "later" {
			t.Errorf("%s: %q is no answer", cells[1], s)
		}
	}
	slices.Sort(rows)
	if want := devcontainer.Properties(); !slices.Equal(rows, want) {
		t.Errorf("documented %q\nknown      %q", rows, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	for _, s := range []string{`{}`, `{"mounts": ["type=bind,source=/,target=/x"]}`, `{"a": [/* x */ 1, 2,], "a": {}}`, `{"workspaceFolder": "/workspaces/app/../.."}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := devcontainer.Parse(text, place)
		if err != nil {
			if len(err.Error()) > 64<<10 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if c.WorkspaceFolder != place.Clone && !strings.HasPrefix(c.WorkspaceFolder, place.Clone+"/") || strings.Contains(c.WorkspaceFolder, "/../") {
			t.Errorf("the workspace folder is %q", c.WorkspaceFolder)
		}
		for _, m := range c.Mounts {
			if m.Type != devcontainer.Volume && m.Type != devcontainer.Tmpfs || strings.ContainsAny(m.Source, "/.") || !filepath.IsAbs(m.Target) || m.Target == "/" || strings.HasPrefix(m.Target+"/", "/workspace/") {
				t.Errorf("%+v", m)
			}
		}
		if b := c.Build; b != nil && (strings.HasPrefix(b.Context, "..") && !strings.HasPrefix(b.Context, "...") && filepath.Clean(b.Context) == ".." || filepath.IsAbs(b.Dockerfile)) {
			t.Errorf("%+v", b)
		}
		for name, value := range c.ContainerEnv {
			if !devcontainer.EnvName(name) || strings.ContainsRune(value, 0) || strings.HasPrefix(name, "DEVAIPOD_") {
				t.Errorf("%q=%q", name, value)
			}
		}
		if len(c.Unsupported) > 51 {
			t.Errorf("%d things said", len(c.Unsupported))
		}
		again, err := devcontainer.Parse(text, place)
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Errorf("another time: %+v, %v", again, err)
		}
	})
}
