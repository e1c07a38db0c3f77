package podfile

// EnvChecks has the commands of a check container as a JSON list.
const EnvChecks = "DEVAIPOD_CHECKS"

// Report is what a check container says at its end, as one line of JSON: what came of
// a repository's checks on one commit. Its texts are of what ran there: hostile.
type Report struct {
	Commit string `json:"commit"`
	// Broken is why nothing could be checked, "" when it could.
	Broken string `json:"broken,omitempty"`
	// Setup is what went wrong with the setup before; the checks ran all the same.
	Setup  string    `json:"setup,omitempty"`
	Checks []Checked `json:"checks,omitempty"`
}

// Checked is what came of one command.
type Checked struct {
	Command string `json:"command"`
	Exit    int    `json:"exit"` // the code it ended with; -1 when something else ended it
	// Late says that its time was over, Why in words how else it failed than by its code.
	Late    bool    `json:"late,omitempty"`
	Why     string  `json:"why,omitempty"`
	Tail    string  `json:"tail,omitempty"` // the last lines of what it wrote
	Seconds float64 `json:"seconds"`
}
