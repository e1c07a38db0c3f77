package web

// Routes are the patterns of all that the site serves, by the origin's kind: home, page
// or agent.
func (s *Site) Routes() map[string][]string { return s.routes }
