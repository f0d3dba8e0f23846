#!/usr/bin/env bash
# Install Chromium, which the tests of pages drive without a window, with the package manager of this
# system. The script prints the commands that it runs. sudo may ask for a password.
set -euo pipefail

for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null; then
        echo "There is a browser: $(command -v "$name")."
        exit 0
    fi
done

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "Installing Chromium needs root, and sudo is not available. Ask the administrator." \
            "Without it, the tests of pages are skipped." >&2
        exit 1
    }
    as_root=(sudo)
fi

run() {
    echo "+ $*"
    "$@"
}
if command -v apt-get >/dev/null; then
    run "${as_root[@]}" apt-get install -y --no-install-recommends chromium fonts-dejavu-core ||
        { run "${as_root[@]}" apt-get update &&
            run "${as_root[@]}" apt-get install -y --no-install-recommends chromium fonts-dejavu-core; }
elif command -v dnf >/dev/null; then
    run "${as_root[@]}" dnf install -y chromium dejavu-sans-fonts
elif command -v pacman >/dev/null; then
    run "${as_root[@]}" pacman -S --needed --noconfirm chromium ttf-dejavu
elif command -v zypper >/dev/null; then
    run "${as_root[@]}" zypper install -y chromium dejavu-fonts
elif command -v apk >/dev/null; then
    run "${as_root[@]}" apk add chromium font-dejavu
else
    echo "Install Chromium with this system's package manager." >&2
    exit 1
fi
