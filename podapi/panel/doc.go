// Package panel shows an issue's agent in the forge's own pages.
//
// The forge serves two files of ours ([Files]): a template that puts a script into pages
// of issues and pull requests, and that script. The script asks a [Panel], which the
// service serves at an origin of its own, panel.localhost, and draws what it is told: all
// of it as text. Where the service does not answer there is no panel, and nothing else.
//
// A person logs in by the forge (OAuth 2.0, RFC 6749, with RFC 7636), in a window that the
// script opens. What comes of it is a token of ours that names the forge's account and
// nothing else; the window hands it to its opener, if that is a page of the forge. It is no
// cookie, since cookies know no ports: every server at 127.0.0.1 would get it. What the
// account may see and do is asked of the forge each time.
package panel
