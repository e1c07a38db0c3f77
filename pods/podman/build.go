package podman

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/containers/podman/v5/pkg/bindings"

	"codeberg.org/devaipod/devaipod/pods/backend"
)

// ImageBuild builds an image; what the build prints is written to log. It is given
// the archive as a stream: nothing of it is on this process's disk.
func (c *Client) ImageBuild(ctx context.Context, b backend.ImageBuild, log io.Writer) error {
	conn, cancel := c.with(ctx)
	defer cancel()
	client, err := bindings.GetClient(conn)
	if err != nil {
		return wrap("building image", b.Ref, err)
	}
	labels, err := json.Marshal(b.Labels)
	if err != nil {
		return err
	}
	args, err := json.Marshal(b.Args)
	if err != nil {
		return err
	}
	files, err := json.Marshal([]string{b.Dockerfile})
	if err != nil {
		return err
	}
	params := url.Values{
		"t": {b.Ref}, "dockerfile": {string(files)}, "labels": {string(labels)}, "target": {b.Target},
		"layers": {"true"}, "rm": {"true"}, "forcerm": {"true"}, "httpproxy": {"false"}, "pullpolicy": {"missing"},
	}
	if len(b.Args) > 0 {
		params.Set("buildargs", string(args))
	}
	if b.MemoryBytes > 0 {
		params.Set("memory", strconv.FormatInt(b.MemoryBytes, 10))
	}
	c.change("build image", b.Ref)
	answer, err := client.DoRequest(conn, b.Context, http.MethodPost, "/build", params, http.Header{"Content-Type": {"application/x-tar"}})
	if err != nil {
		return wrap("building image", b.Ref, err)
	}
	defer answer.Body.Close()
	if !answer.IsSuccess() {
		return wrap("building image", b.Ref, answer.Process(nil))
	}
	return wrap("building image", b.Ref, followBuild(answer.Body, log))
}

// followBuild reads what a build says, a JSON object after the other, and returns
// what it ended with.
func followBuild(from io.Reader, log io.Writer) error {
	built := false
	for d := json.NewDecoder(from); ; {
		var m struct {
			Stream string `json:"stream"`
			Error  string `json:"error"`
		}
		err := d.Decode(&m)
		switch {
		case errors.Is(err, io.EOF) && built:
			return nil
		case errors.Is(err, io.EOF):
			return errors.New("podman ended before the image was built")
		case err != nil:
			return fmt.Errorf("reading what the build says: %w", err)
		case m.Error != "":
			return errors.New(strings.TrimSpace(m.Error))
		}
		if _, err := io.WriteString(log, m.Stream); err != nil {
			return err
		}
		built = isID(strings.TrimSpace(m.Stream)) || built && m.Stream == ""
	}
}

// isID tells whether a line is the id that a build ends with.
func isID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}
