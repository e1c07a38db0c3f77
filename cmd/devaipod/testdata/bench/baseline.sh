#!/usr/bin/env bash
# What `make bench` compares the way from a label to the agent's first request
# with: a person who has no devaipod and does it by hand, as directly as it goes.
# One container of the agent's image with two volumes, on the host's network; in
# it the clone, and opencode with the same configuration; then one prompt.
#
#   baseline.sh NAME IMAGE CLONE_URL BRANCH PORT <PROMPT
#
# The OPENCODE_ variables of the environment are passed on. It returns when
# opencode has taken the prompt; who calls it sees at the model when the first
# request comes, and removes the container NAME and the volumes NAME-home and
# NAME-workspace.
set -euo pipefail
name=$1 image=$2 url=$3 branch=$4 port=$5
prompt=$(cat)
api=http://127.0.0.1:$port
repo=/workspace/repo

options=()
for variable in ${!OPENCODE_*}; do options+=(--env "$variable"); done
podman volume create "$name-home" >/dev/null
podman volume create "$name-workspace" >/dev/null
# shellcheck disable=SC2016 # for the shell in the container
podman run --detach --name "$name" --pull never --network host "${options[@]}" \
  --volume "$name-home:/home/agent" --volume "$name-workspace:/workspace" "$image" \
  sh -c 'git clone --quiet -- "$1" "$2" && cd "$2" && git switch --quiet --create "$3" && exec opencode serve --hostname 127.0.0.1 --port "$4"' \
  sh "$url" "$repo" "$branch" "$port" >/dev/null

# ask PATH JSON: an opencode that is just starting may take a connection and
# never answer it.
ask() {
  curl --silent --fail --max-time 2 --header 'Content-Type: application/json' --data "$2" "$api$1?directory=$repo"
}
until session=$(ask /session '{"title": "baseline"}' | jq -er .id); do
  [ "$SECONDS" -lt 120 ] || { podman logs "$name" >&2; exit 1; }
  sleep 0.05
done 2>/dev/null
ask "/session/$session/prompt_async" "$(jq -n --arg text "$prompt" '{parts: [{type: "text", text: $text}]}')"
