package testkit

import "fmt"

// Task is an issue's text for the scripted model (package scriptedmodel) and
// for any other: the proof, and with scenario something else than the usual.
func (p Proof) Task(scenario string) string {
	text := fmt.Sprintf(`Compute the SHA-256 of the nonce below, without a newline at its end, with a command
(`+"`printf %%s NONCE | sha256sum`"+`), and write it down in a new file `+"`NONCE.sha256`"+`.

nonce: %s
`, p.Nonce)
	if scenario != "" && scenario != "default" {
		text += "scenario: " + scenario + "\n"
	}
	return text
}
