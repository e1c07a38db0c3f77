#!/bin/sh
# Starts the forge. Settings come as FORGEJO__section__KEY or GITEA__section__KEY
# in the environment and are written into the configuration file at every start;
# what else is in that file (the secrets that the forge makes itself) stays.
set -eu

mkdir -p "$HOME" "$GITEA_CUSTOM" "$GITEA_TEMP" "$(dirname "$GITEA_APP_INI")"

if [ ! -f "$GITEA_APP_INI" ]; then
  (umask 077 && cat >"$GITEA_APP_INI.new") <<INI
APP_NAME = Forge
RUN_MODE = prod
RUN_USER = git

[repository]
ROOT = $GITEA_WORK_DIR/git/repositories

[repository.local]
LOCAL_COPY_PATH = $GITEA_TEMP/local-repo

[repository.upload]
TEMP_PATH = $GITEA_TEMP/uploads

[server]
APP_DATA_PATH = $GITEA_WORK_DIR
HTTP_PORT = 3000
START_SSH_SERVER = true
SSH_PORT = 2222
SSH_LISTEN_PORT = 2222
BUILTIN_SSH_SERVER_USER = git

[database]
DB_TYPE = sqlite3
PATH = $GITEA_WORK_DIR/data/gitea.db

[session]
PROVIDER_CONFIG = $GITEA_WORK_DIR/data/sessions

[picture]
AVATAR_UPLOAD_PATH = $GITEA_WORK_DIR/data/avatars
REPOSITORY_AVATAR_UPLOAD_PATH = $GITEA_WORK_DIR/data/repo-avatars

[attachment]
PATH = $GITEA_WORK_DIR/data/attachments

[log]
ROOT_PATH = $GITEA_WORK_DIR/data/log

[lfs]
PATH = $GITEA_WORK_DIR/git/lfs
INI
  mv "$GITEA_APP_INI.new" "$GITEA_APP_INI"
fi

# environment-to-ini knows only the GITEA__ names. The eval sees a name made of
# letters, digits and underscores, never a value.
value=
for name in $(env | sed -n 's/^\(FORGEJO__[A-Za-z0-9_]*\)=.*/\1/p'); do
  eval "value=\${$name-}"
  export "GITEA__${name#FORGEJO__}=$value"
done
environment-to-ini --config "$GITEA_APP_INI"

if [ $# -gt 0 ]; then
  exec "$@"
fi
exec gitea web
