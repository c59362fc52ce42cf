#!/bin/sh
# Copies a data directory while the gateway serves: backup.sh DATA TARGET
#
# The database is copied by SQLite itself, at one moment. Folders come after it, so that every adapter that a row of the
# copy names is there. TARGET/afterword is replaced whole; the copy before is TARGET/afterword.before.
set -eu
if [ $# -ne 2 ] || [ ! -f "$1/afterword.db" ]; then
    echo "usage: $0 DATA TARGET, where DATA/afterword.db exists" >&2
    exit 2
fi
umask 077
fresh="$2/afterword.new"
rm -rf "$fresh"
mkdir -p "$fresh"
python3 - "$1/afterword.db" "$fresh/afterword.db" <<'PYTHON'
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

source = f"{Path(sys.argv[1]).resolve().as_uri()}?mode=ro"
with closing(sqlite3.connect(source, uri=True)) as data, closing(sqlite3.connect(sys.argv[2])) as copy:
    data.backup(copy)
    (whole,) = copy.execute("PRAGMA integrity_check").fetchone()
    if whole != "ok":
        raise SystemExit(f"the copy of {sys.argv[1]} is damaged: {whole}")
PYTHON
for name in adapters reports quarantine rejects forget forecast keys.json release.key release.pub afterword.toml; do
    if [ -e "$1/$name" ]; then
        cp -a "$1/$name" "$fresh/"
    fi
done
rm -rf "$2/afterword.before"
if [ -d "$2/afterword" ]; then
    mv "$2/afterword" "$2/afterword.before"
fi
mv "$fresh" "$2/afterword"
echo "copied $1 to $2/afterword"
