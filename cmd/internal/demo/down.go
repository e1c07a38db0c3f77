package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

// down removes all of the demo and looks whether that is so. It works however
// far an `up` came, and on nothing.
func (d *demo) down(ctx context.Context) error {
	if _, err := os.Stat(d.dir); errors.Is(err, os.ErrNotExist) {
		d.say("Nothing of the demo is here (%s)", d.dir)
		return nil
	}
	world, err := testkit.OpenWorld(d.dir)
	if err != nil {
		return err
	}
	d.world = world
	config, program := filepath.Join(d.dir, "devaipod.toml"), filepath.Join(d.root, "bin", "devaipod")
	if exists(config) && exists(program) {
		d.say("devaipod forge down --purge --force --no-bundle")
		d.stack = &testkit.Stack{StackConfig: testkit.StackConfig{Bin: filepath.Dir(program)}, World: world, ConfigFile: config}
		if err := d.devaipod(ctx, "", "forge", "down", "--purge", "--force", "--no-bundle"); err != nil {
			fmt.Fprintf(d.errOut, "demo: %v\ndemo: going on; what it left is removed with the demo's podman\n", err)
		}
	}
	d.say("Removing the scripted model, the demo's podman and %s", d.dir)
	if err := world.Remove(ctx); err != nil {
		return err
	}
	d.say("Nothing of the demo is left: no container, network, volume, secret, process, mount or file")
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
