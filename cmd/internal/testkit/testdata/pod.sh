#!/bin/sh
# The pod that the benchmark makes, as somebody would make it by hand:
#   pod.sh up|stop|wake|rm NAME
# with IMAGE, TOOLS, RUN, USAGE and SECCOMP in the environment.
set -eu
pod=$2
owned="agent-home agent-workspace workspace workspace-home saver"
sockets="agent-sock workspace-sock"

run() { # NAME PIDS MEMORY ARGUMENT...
  name=$1 pids=$2 memory=$3
  shift 3
  podman run --detach --quiet --pod "$pod" --name "$pod-$name" --pids-limit "$pids" --memory "${memory}m" --cap-drop all \
    --security-opt no-new-privileges --security-opt label=disable --security-opt "seccomp=$SECCOMP" --image-volume ignore --http-proxy=false \
    --read-only --read-only-tmpfs=false --tmpfs "/tmp:size=$((memory / 2))m" --tmpfs "/var/tmp:size=$((memory / 4))m" --tmpfs /run:size=16m "$@"
}

box() { # NAME MEMORY COMMAND...
  name=$1 memory=$2
  shift 2
  run "$name" 4096 "$memory" --stop-timeout 5 --network none --user 1000:1000 --workdir /workspace --entrypoint /.devaipod/devaipod-pod \
    --mount "type=image,source=$TOOLS,destination=/.devaipod" --volume "$pod-$name-sock:/run/devaipod:nocopy" "$@"
}

case $1 in
up)
  for v in $owned; do podman volume create --opt o=uid=1000,gid=1000 "$pod-$v"; done
  for v in $sockets; do podman volume create "$pod-$v"; done
  podman network create "$pod-egress"
  podman pod create --infra=false --share none --name "$pod"
  run control 512 512 --stop-timeout 5 --network "$pod-egress" --entrypoint /devaipod-pod \
    --volume "$RUN:/run/service" --volume "$USAGE:/run/usage" --volume "$pod-agent-sock:/run/pod/agent" --volume "$pod-workspace-sock:/run/pod/workspace" "$TOOLS" control
  box agent 256 --volume "$pod-agent-workspace:/workspace:nocopy" --volume "$pod-agent-home:/home/agent" --env DEVAIPOD_TOKEN=x --env DEVAIPOD_REPO=ann/hello "$IMAGE" shim agent -- opencode serve
  box workspace 4096 --volume "$pod-workspace:/workspace:nocopy" --volume "$pod-workspace-home:/home/agent" --env DEVAIPOD_TOKEN=x --env DEVAIPOD_REPO=ann/hello "$IMAGE" shim workspace
  run saver 512 512 --stop-timeout 30 --restart on-failure --network none --user 1000:1000 --entrypoint /.devaipod/devaipod-pod \
    --mount "type=image,source=$TOOLS,destination=/.devaipod" --volume "$pod-agent-workspace:/workspace:ro" --volume "$pod-saver:/saver:U" --volume "$RUN/save:/run/save:ro" "$IMAGE" saver --issue 3
  ;;
stop)
  for c in agent saver workspace control; do podman stop "$pod-$c"; done
  ;;
wake)
  for c in control agent workspace saver; do podman start "$pod-$c"; done
  ;;
rm)
  podman pod rm --force --time 1 "$pod"
  podman network rm "$pod-egress"
  for v in $owned $sockets; do podman volume rm "$pod-$v"; done
  ;;
*)
  echo "usage: pod.sh up|stop|wake|rm NAME" >&2
  exit 2
  ;;
esac >/dev/null
