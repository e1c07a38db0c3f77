package panel

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"strings"
	"text/template"
)

// Mark is in the template of ours: one without it is somebody else's.
const Mark = "devaipod's panel"

//go:embed panel.js
var script []byte

// A File is one for the forge's custom directory (forgejo.org/docs, Customization).
type File struct {
	Path string // in that directory
	Text []byte
}

// footer is a template that makes one: custom/footer.tmpl is in each page of the forge,
// behind its own scripts. It is in pages of issues and pull requests that .Issue is set,
// and .SignedUser for who is logged in. The forge quotes what it puts in.
var footer = template.Must(template.New("").Delims("[[", "]]").Parse(`{{/* [[.Mark]]: written by devaipod forge up. Without this line devaipod leaves the file alone. */}}
{{if and .SignedUser .Repository .Issue}}<script defer src="{{AppSubUrl}}/assets/devaipod/panel.js?v=[[.Version]]" data-service="[[.Service]]" data-forge="[[.Forge]]" data-user="{{.SignedUser.Name}}" data-repo="{{.Repository.OwnerName}}/{{.Repository.Name}}" data-number="{{.Issue.Index}}"></script>{{end}}
`))

// Files are what a forge needs for the panel of the service at listen: first the template,
// which it reads when it starts, then the script, whose newest version it serves.
func Files(listen, forge string) ([]File, error) {
	host, err := hostOf(listen)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(host+forge, "\"'<>{}[] \t\n") {
		return nil, fmt.Errorf("the panel: %q and %q are no addresses", host, forge)
	}
	sum := sha256.Sum256(script)
	var b bytes.Buffer
	err = footer.Execute(&b, map[string]string{"Mark": Mark, "Version": hex.EncodeToString(sum[:6]), "Service": "http://" + host, "Forge": forge})
	return []File{{"templates/custom/footer.tmpl", b.Bytes()}, {"public/assets/devaipod/panel.js", script}}, err
}
