package podapi

import _ "embed"

// OpenAPI is the document of what [NewServer] serves (OpenAPI 3.1, YAML).
//
//go:embed openapi.yaml
var OpenAPI []byte
