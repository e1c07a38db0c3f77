package testkit_test

import (
	"context"
	"path/filepath"
	"testing"

	"codeberg.org/devaipod/devaipod/pods"
)

func TestWhatPeopleLeaveBesideAnAgentIsSeenOnceSomebodyEntered(t *testing.T) {
	ctx := t.Context()
	m, tools := podManager(t, "left")
	k := pods.Key{Owner: "ann", Repo: "left", Issue: 1}
	_, err := m.Ensure(ctx, spec(tools, k))
	must(t, err)
	t.Cleanup(func() { must(t, m.Remove(context.WithoutCancel(ctx), k)) })
	name := m.Name(k)
	for _, role := range []string{"workspace", "agent"} {
		_, err := world.Podman(ctx, "exec", name+"-"+role, "touch", "/workspace/notes")
		must(t, err)
	}
	enter := func(role string) {
		t.Helper()
		st, err := world.client.State(ctx, name+"-"+role)
		must(t, err)
		must(t, pods.Enter(filepath.Join(world.Dir, "left"), "left", st.Labels))
	}
	if enter("agent"); !m.LeftThere(ctx, k).Empty() {
		t.Error("a workspace that nobody entered is looked into")
	}
	must(t, m.Stop(ctx, k))
	enter("workspace")
	if work := m.LeftThere(ctx, k); len(work.Beside) != 1 || work.Beside[0] != "notes" || work.Broken != "" {
		t.Errorf("%+v", work)
	}
}
