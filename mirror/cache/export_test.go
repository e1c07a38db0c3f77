package cache

var (
	ParsePath = parsePath
	Warning   = warning
)
