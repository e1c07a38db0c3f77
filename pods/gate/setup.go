package gate

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"sync"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// setups are what the containers last said of their setup: hostile words.
type setups struct {
	mu   sync.Mutex
	last map[Role]podfile.SetupState
}

func (s *setups) take(role Role, w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, podfile.MaxSetupState))
	var st podfile.SetupState
	if err == nil {
		err = json.Unmarshal(text, &st)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "devaipod: that is not where a setup is")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[Role]podfile.SetupState{}
	}
	s.last[role] = st
	w.WriteHeader(http.StatusNoContent)
}

// Setups are what the containers last said of their setup. It is for people to
// see: it may be anything.
func (g *Gate) Setups() map[Role]podfile.SetupState {
	g.setups.mu.Lock()
	defer g.setups.mu.Unlock()
	return maps.Clone(g.setups.last)
}
