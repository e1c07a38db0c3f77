package testkit_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/backend/backendtest"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

func TestPodmanKeepsTheContract(t *testing.T) {
	backendtest.World{
		Backend: podman.NewPods(world.client, "contract", world.log), Image: box,
		Before: func(f func(step int)) backend.Backend {
			step := 0
			return podman.NewPods(world.client.WithFault(func(string) { step++; f(step) }), "contract", world.log)
		},
		Stray: func(ctx context.Context, volume string) error {
			_, err := world.client.EnsureVolume(ctx, volume, nil)
			return err
		},
		Lose: func(ctx context.Context, volume string) error {
			dir, err := world.client.VolumeDir(ctx, volume)
			if err != nil {
				return err
			}
			return os.RemoveAll(filepath.Dir(dir))
		},
		Names: func(context.Context) ([]string, error) { return strings.Split(names(t), "\n"), nil },
	}.Run(t)
}
