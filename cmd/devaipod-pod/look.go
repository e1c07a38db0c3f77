package main

import (
	"context"
	"encoding/json"
	"io"
	"os"

	"codeberg.org/devaipod/devaipod/pods/image"
)

// runLook says as one line of JSON on stdout what the image is like that this
// container is made from.
func runLook(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flags("look", stderr)
	git := f.String("git", "", "path of a git that is not the image's, to try")
	if err := f.Parse(args); err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(image.Look(ctx, "/", *git, os.Getuid()))
}
