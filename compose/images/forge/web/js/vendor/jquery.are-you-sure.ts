// Stands in for the file of this name in Gitea's source, which its Go module
// lacks: Go leaves folders named vendor out of a module. The real one asks before
// a half-filled form is left; this one does not ask.
export function initAreYouSure(_jquery: unknown) {}
export function applyAreYouSure(_form: unknown, _options?: unknown) {}
