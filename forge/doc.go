// Package forge is all that devaipod says to a Forgejo, or to its sibling
// Gitea, which serves the same API family.
//
// [Client] reads and writes issues, labels, comments, branches and pull
// requests in the names of two accounts: the service, a site admin that asks
// who may do what and sets up labels and hooks, and the bot, which comments
// and opens pull requests. [Provisioner] makes accounts and tokens through the
// forge's own command inside its container. [Hook] takes webhooks, and
// [Harmless] takes the force out of text that an agent wrote.
//
// Requests and answers are the types of the Forgejo SDK; the transport is our
// own (api.go), because every call has a context, a bound on what it reads,
// and an error that tells what the forge said. What the SDK's types lack is
// declared beside its use.
//
// Sources: the forge's own /swagger.v1.json, and docs/forge.md for what was
// seen to differ from it.
package forge
