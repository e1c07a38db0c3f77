package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/podapi/panel"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// What the panel in the forge's pages needs there: two files, and an application by which
// people log in.

func panelDefaults() map[string]any { return map[string]any{"forge.panel": true} }

// putPanel brings our own forge to what forge.panel says. It reads its templates when it
// starts, so it is started again when that is another.
func (a *app) putPanel(ctx context.Context, p *podman.Client, container string) error {
	files, err := panel.Files(a.cfg.Service.Listen, a.cfg.forgeURL())
	if err != nil {
		return err
	}
	custom := forgeCustom{p, container}
	has, err := custom.read(ctx, files[0].Path)
	ours := strings.Contains(has, panel.Mark)
	switch {
	case err != nil:
		return fmt.Errorf("looking for the panel in the forge: %w", err)
	case has != "" && !ours:
		a.step("panel    none: the forge has a %s of yours", files[0].Path)
		return nil
	case a.cfg.Forge.Panel:
		c, err := a.readCredentials()
		if err != nil {
			return err
		}
		if err := a.panelApp(ctx, &c, a.ownLogin); err != nil {
			return err
		}
		err = errors.Join(custom.write(ctx, files[1]), custom.write(ctx, files[0]))
		if err != nil || has == string(files[0].Text) {
			return err
		}
	case !ours:
		return nil
	default:
		if err := errors.Join(custom.remove(ctx, files[0].Path), custom.remove(ctx, files[1].Path)); err != nil {
			return err
		}
	}
	a.step("starting the forge again: the panel in its pages has changed")
	if err := p.StopContainer(ctx, container, 10*time.Second); err != nil {
		return err
	}
	if err := p.StartContainer(ctx, container); err != nil {
		return err
	}
	return a.waitForge(ctx)
}

// appName is what our application is called on the forge.
func (a *app) appName() string { return a.cfg.Instance + "-panel" }

// ownLogin is a new password of the service's account on our own forge, kept nowhere: its
// token may not make applications.
func (a *app) ownLogin(ctx context.Context, service *forge.Client, account string) (forge.Login, error) {
	l := forge.Login{User: account, Password: rand.Text() + "-a1"}
	return l, service.SetPassword(ctx, account, l.Password)
}

// panelApp makes the application of the service's account, if it is not there, by what
// login gives.
func (a *app) panelApp(ctx context.Context, c *credentials, login func(context.Context, *forge.Client, string) (forge.Login, error)) error {
	back, err := panel.Callback(a.cfg.Service.Listen)
	if err != nil {
		return err
	}
	service, err := a.serviceForge(*c)
	if err != nil {
		return err
	}
	if c.PanelClient != "" {
		if has, err := service.HasOAuthApp(ctx, c.PanelClient, back); err != nil || has {
			return err
		}
	}
	as, err := login(ctx, service, c.Service)
	if err != nil {
		return fmt.Errorf("logging in to make the panel's application on the forge: %w", err)
	}
	app, err := service.MakeOAuthApp(ctx, as, a.appName(), back)
	if err != nil {
		return fmt.Errorf("making the panel's application on the forge: %w", err)
	}
	c.PanelClient, c.PanelSecret = app.Client, app.Secret
	return a.writeCredentials(*c)
}

// joinPanel makes the application on a forge that was joined, where the service's token
// may. The files are its admin's to put there.
func (a *app) joinPanel(ctx context.Context, c *credentials) error {
	if !a.cfg.Forge.Panel {
		return nil
	}
	err := a.panelApp(ctx, c, func(context.Context, *forge.Client, string) (forge.Login, error) { return forge.Login{}, nil })
	if errors.Is(err, forge.ErrForbidden) {
		a.step("panel    none: the service's token lacks the scope write:user, to make the application by which people log in to it")
		return nil
	}
	return err
}

// leavePanel removes it.
func (a *app) leavePanel(ctx context.Context, c credentials) error {
	if c.PanelClient == "" {
		return nil
	}
	service, err := a.forgeWith(c.ServiceToken)
	if err != nil {
		return err
	}
	return service.RemoveOAuthApp(ctx, forge.Login{}, a.appName())
}

// forgeCustom is the custom directory of a forge of ours.
type forgeCustom struct {
	podman    *podman.Client
	container string
}

func (f forgeCustom) sh(ctx context.Context, script, path string, in []byte) (string, error) {
	var out, errOut bytes.Buffer
	code, err := f.podman.Exec(ctx, f.container, "git", []string{"sh", "-ec", `f="${GITEA_CUSTOM:-/var/lib/gitea/custom}/$1"; ` + script, "sh", path}, bytes.NewReader(in), &out, &errOut)
	if err == nil && code != 0 {
		err = fmt.Errorf("%s in the forge: sh ended with code %d: %s", path, code, strings.TrimSpace(errOut.String()))
	}
	return out.String(), err
}

// read is a file's text, "" when it is not there.
func (f forgeCustom) read(ctx context.Context, path string) (string, error) {
	return f.sh(ctx, `[ ! -e "$f" ] || cat "$f"`, path, nil)
}

func (f forgeCustom) write(ctx context.Context, file panel.File) error {
	_, err := f.sh(ctx, `mkdir -p "${f%/*}"; cat >"$f.new"; mv "$f.new" "$f"`, file.Path, file.Text)
	return err
}

func (f forgeCustom) remove(ctx context.Context, path string) error {
	_, err := f.sh(ctx, `rm -f "$f"`, path, nil)
	return err
}

func (a *app) forgePanelCmd() *cobra.Command {
	return &cobra.Command{
		Use: "panel DIR", Short: "Write the files by which a forge's pages show agents", Args: args(cobra.ExactArgs(1)),
		Long: `Write what a forge needs so that its pages of issues and pull requests show agents:
a template and a script, in the place that they have in the forge's custom directory.
On a forge that was joined they are its admin's to put there, before it is started
again; on one of our own devaipod forge up does that. Write them anew after an upgrade.`,
		RunE: func(_ *cobra.Command, rest []string) error {
			files, err := panel.Files(a.cfg.Service.Listen, a.cfg.forgeURL())
			if err != nil {
				return err
			}
			for _, f := range files {
				path := filepath.Join(rest[0], f.Path)
				has, err := os.ReadFile(path)
				if err == nil && strings.HasSuffix(path, ".tmpl") && !bytes.Contains(has, []byte(panel.Mark)) {
					return fmt.Errorf("%s is there, and is not of devaipod's making: add to it what another directory gets", path)
				}
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(path, f.Text, 0o644); err != nil {
					return err
				}
				a.step("wrote    %s", path)
			}
			return nil
		},
	}
}
