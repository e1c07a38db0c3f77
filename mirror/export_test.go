package mirror

import "io"

// ReadCommands reads a push's command list: the refs, and exactly what was read.
func ReadCommands(r io.Reader) (refs []string, raw []byte, err error) {
	list, err := readCommands(r)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range list.commands {
		refs = append(refs, c.ref)
	}
	return refs, list.raw, nil
}

// ReadPack reads a pack to its end.
var ReadPack = readPack
