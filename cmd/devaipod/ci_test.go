package main_test

import (
	"net/url"
	"reflect"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/ci/job"
	devaipod "codeberg.org/devaipod/devaipod/cmd/devaipod"
)

func TestWhereAJobFindsTheForge(t *testing.T) {
	for forge, want := range map[string]int{
		"http://127.0.0.1:3000": 3000, "http://localhost:3000/sub": 3000, "http://[::1]:3001": 3001,
		"https://127.0.0.1:3000": 8098, "https://git.example.org": 8098, "http://git.example.org:3000": 8098,
		"http://127.0.0.1:8099": 8098, "http://127.0.0.1": 8098,
	} {
		u, err := url.Parse(forge)
		if err != nil {
			t.Fatal(err)
		}
		if got := devaipod.PortInJob(u); got != want {
			t.Errorf("%s: %d, not %d", forge, got, want)
		}
	}
}

func TestTheForgesURLsMeanTheDoorInAJob(t *testing.T) {
	context := map[string]any{
		"server_url": "https://git.example.org/sub", "api_url": "https://git.example.org/sub/api/v1", "n": 1.5,
		"event": map[string]any{"urls": []any{"https://git.example.org/sub?x", "https://git.example.org/subway", "https://evil.example.org/?https://git.example.org/sub"}},
	}
	want := map[string]any{
		"server_url": "http://127.0.0.1:8098", "api_url": "http://127.0.0.1:8098/api/v1", "n": 1.5,
		"event": map[string]any{"urls": []any{"http://127.0.0.1:8098?x", "https://git.example.org/subway", "https://evil.example.org/?https://git.example.org/sub"}},
	}
	if got := devaipod.Rebased(context, "https://git.example.org/sub", "http://127.0.0.1:8098"); !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
	if context["server_url"] != "https://git.example.org/sub" {
		t.Error("what the runner has was changed")
	}
}

func TestWhichServicesAJobHas(t *testing.T) {
	got, err := devaipod.ServiceNames([]byte("jobs: {a: {services: {redis: {image: r}, db: &x {image: d}, other: *x}}}"))
	if err != nil || !reflect.DeepEqual(got, []string{"db", "other", "redis"}) {
		t.Errorf("%q %v", got, err)
	}
	if got, err := devaipod.ServiceNames([]byte("jobs: {a: {steps: []}}")); err != nil || len(got) != 0 {
		t.Errorf("%q %v", got, err)
	}
	if _, err := devaipod.ServiceNames([]byte("jobs: [")); err == nil {
		t.Error("what is no YAML has services")
	}
}

func TestWhichImagesJobsMayUse(t *testing.T) {
	may := devaipod.CIMayUse(t, map[string]any{"state_dir": "/s", "mirror.dir": "/m", "ci.images": []string{"here=localhost/devaipod/ci:latest"}, "ci.registries": []string{"docker.io"}})
	for image, want := range map[string]bool{
		"localhost/devaipod/ci:latest": true, "docker.io/library/redis:7": true, "localhost/devaipod/agent:latest": false,
		"10.0.0.1:5000/x:latest": false, "docker.io.evil.example/x:latest": false, "": false,
	} {
		if err := may(image); (err == nil) != want {
			t.Errorf("%s: %v", image, err)
		}
	}
}

func TestWhatAJobsProcessSays(t *testing.T) {
	var got []job.Event
	take := func(e job.Event) { got = append(got, e) }
	ended, err := devaipod.PassOn(strings.NewReader(`{"step":0,"line":"a"}`+"\n"+`{"step":-2,"result":"success"}`+"\n"), take)
	if err != nil || !ended || len(got) != 2 || *got[0].Line != "a" || got[1].Result != job.Success {
		t.Errorf("%v %v %v", got, ended, err)
	}
	for text, why := range map[string]string{
		"":                                  "",
		`{"step":0,"line":"a"}` + "\n{\"st": "unexpected end",
		"\x1b[2J\n":                         "invalid character",
		strings.Repeat("x", 9<<20):          "too long",
	} {
		got = nil
		ended, err := devaipod.PassOn(strings.NewReader(text), take)
		if ended || (err == nil) != (why == "") || err != nil && !strings.Contains(err.Error(), why) {
			t.Errorf("%.20q: %v %v, not %s", text, ended, err, why)
		}
	}
}
