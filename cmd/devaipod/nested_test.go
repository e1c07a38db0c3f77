package main

import (
	"testing"

	"codeberg.org/devaipod/devaipod/pods"
)

func TestWhosePodsMayNest(t *testing.T) {
	c, err := load(t, "[agent]\nnested = [\"ann/engine\", \"tools/*\"]", nil)
	if err != nil {
		t.Fatal(err)
	}
	for repo, want := range map[pods.Key]bool{
		{Owner: "ann", Repo: "engine", Issue: 3}: true, {Owner: "Ann", Repo: "Engine", Name: "mine"}: true, {Owner: "tools", Repo: "any", Issue: 1}: true,
		{Owner: "ann", Repo: "other", Issue: 3}: false, {Owner: "ann", Repo: "engine2", Issue: 3}: false, {Owner: "engine", Repo: "ann", Issue: 3}: false, {Owner: "tools2", Repo: "any", Issue: 1}: false,
	} {
		if got := c.nested(repo); got != want {
			t.Errorf("%s: %v, want %v", repo, got, want)
		}
	}
	if c, err = load(t, "", nil); err != nil || c.nested(pods.Key{Owner: "ann", Repo: "engine", Issue: 3}) {
		t.Errorf("without the opt-in: %v", err)
	}
}
