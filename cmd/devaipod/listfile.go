package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// A listFile keeps a list as JSON. One that is not there is empty. Who changes it keeps others
// from doing so meanwhile.
type listFile[T any] string

func (f listFile[T]) read() (all []T, err error) {
	text, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f, err)
	}
	return all, nil
}

func (f listFile[T]) write(all []T) error {
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return podfile.Replace(string(f), text)
}
