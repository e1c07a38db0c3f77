// Command devaipod-box puts itself into a box and turns into git: what the service
// has read what pods push. It is a program of its own so that it starts in no time.
// People never call it.
package main

import (
	"fmt"
	"os"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

func main() {
	fmt.Fprintln(os.Stderr, "devaipod-box: "+gitproc.Enter(os.Args[1:]).Error())
	os.Exit(1)
}
