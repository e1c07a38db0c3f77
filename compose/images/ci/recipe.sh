# shellcheck shell=bash
# The image of jobs where there is no registry: Debian 12 with what actions and
# Makefiles need, and Debian's Node.js for actions in JavaScript. Sourced by ../build.

recipe_ci() { # BASE ROOT OUT
  need mmdebstrap
  step "fetching and unpacking Debian 12 with Node.js" "2 min" \
    mmdebstrap --variant=minbase --skip=output/dev \
    --include=bash,ca-certificates,curl,git,gzip,jq,make,nodejs,procps,tar,unzip,xz-utils,zstd \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    bookworm "$3"
}
