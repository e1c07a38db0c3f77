# shellcheck shell=bash
# shellcheck disable=SC2154 # ../build, which sources this, sets here and work, and stops at errors
# The forge of demo and tests: Gitea, built from its Go module; README.md says why.
# Sourced by ../build.

# Files that Gitea reads at run time, baked into the program as its default.
forge_static=/usr/share/gitea

recipe_forge() { # BASE ROOT OUT
  local base=$1 root=$2 out=$3 source version
  need go gcc node npm
  step "fetching Gitea's source" "30 s" forge_download
  source=$(cd "$here/forge" && GOFLAGS=-mod=readonly go list -m -f '{{.Dir}}' code.gitea.io/gitea)
  version=$(cd "$here/forge" && GOFLAGS=-mod=readonly go list -m -f '{{.Version}}' code.gitea.io/gitea)
  step "compiling Gitea $version" "2 min" forge_compile "$root" "${version#v}"
  cp -r "$source" "$work/web"
  chmod -R u+w "$work/web"
  cp -r "$here/forge/web/." "$work/web/web_src/"
  step "fetching what its pages are built with" "30 s" \
    npm --prefix "$work/web" ci --ignore-scripts --no-audit --no-fund --no-update-notifier
  step "building its pages' scripts and styles" "70 s" forge_webpack
  install -d "$root$forge_static"
  cp -r "$work/web/options" "$work/web/public" "$work/web/templates" "$root$forge_static/"
  find "$root$forge_static" -name '*.map' -delete
  cp -r "$here/forge/rootfs/." "$root/"
  chmod 0755 "$root"/usr/local/bin/*
  ln -s gitea "$root/usr/local/bin/forgejo"
  install -D -m 0644 "$source/LICENSE" "$root/usr/share/doc/gitea/copyright"
  step "writing the forge image" "5 s" assemble "$base" "$root" "$out" git /var/lib/gitea/git
  # A fresh named volume takes its owner from the directory it covers.
  step "adding its directories" "1 s" own "$out" var/lib/gitea etc/gitea
}

forge_download() {
  cd "$here/forge" || return
  GOFLAGS=-mod=readonly go mod download
}

forge_compile() { # ROOT VERSION
  cd "$here/forge" || return
  export GOFLAGS=-mod=readonly CGO_ENABLED=1
  local flags=(-trimpath -tags 'sqlite sqlite_unlock_notify')
  go build "${flags[@]}" -o "$1/app/gitea/gitea" \
    -ldflags "-s -w -X main.Version=$2 -X code.gitea.io/gitea/modules/setting.StaticRootPath=$forge_static" \
    code.gitea.io/gitea
  go build "${flags[@]}" -o "$1/usr/local/bin/environment-to-ini" -ldflags '-s -w' \
    code.gitea.io/gitea/contrib/environment-to-ini
}

forge_webpack() {
  cd "$work/web" || return
  ENABLE_SOURCEMAP=false BROWSERSLIST_IGNORE_OLD_DATA=true npx --no-install webpack --disable-interpret
}
