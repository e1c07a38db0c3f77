// Package cache is a caching mirror of git repositories: a repository of any
// upstream that is allowed can be cloned from
// /git/<host[:port]>/<path>.git, at the speed of this machine's disk.
//
// [Cache] is the whole: an http.Handler, and verbs for a command line. One
// walk through it, for `git clone http://127.0.0.1:8090/git/github.com/a/b.git`:
//
//   - http.go reads the request. The path becomes an [Address], which [Allow]
//     has to let pass.
//   - fresh.go asks the upstream what refs it has, unless that is younger than
//     [Config.MaxAge]. However many clients ask, the upstream is asked once.
//     Whoever may not read the repository there may not read it here.
//   - upstream.go is the only way out: git's children fetch from a forwarder
//     within this process, which holds the credentials, follows redirects only
//     to where the rules allow, and dials no private address that is not named.
//   - store.go keeps the repository: a bare one, and beside it a state file. It
//     is changed under a lock, and by steps after each of which a kill leaves it
//     whole.
//   - answer.go gives what git's own upload-pack says, made once for all
//     identical requests.
//
// Sources: gitprotocol-http(5), gitprotocol-v2(5), gitprotocol-pack(5).
package cache
