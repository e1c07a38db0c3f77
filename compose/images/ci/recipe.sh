# shellcheck shell=bash
# The image of jobs where there is no registry: the base with what actions and Makefiles
# need beyond it, and Debian's Node.js for actions in JavaScript. Sourced by ../build.

recipe_ci() { # BASE ROOT OUT
  need mmdebstrap
  step "adding Node.js to Debian 12" "10 s" \
    mmdebstrap --variant=custom --skip=output/dev --setup-hook="tar -C \"\$1\" -xf '$1'" \
    --include=nodejs,unzip,xz-utils,zstd \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    bookworm "$3"
}
