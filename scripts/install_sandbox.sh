#!/usr/bin/env bash
# Install bubblewrap and libseccomp, the two system packages of the sandbox, with the package manager
# of this system. The script prints the commands that it runs. sudo may ask for a password.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

missing=()
command -v bwrap >/dev/null || missing+=(bubblewrap)
ldconfig -p 2>/dev/null | grep -q 'libseccomp\.so\.2' || missing+=(libseccomp)
if [ ${#missing[@]} -eq 0 ]; then
    echo "bubblewrap and libseccomp are installed."
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "Missing: ${missing[*]}. Installing them needs root, and sudo is not available. Ask the" \
            "administrator. Without bubblewrap, programs run in confined processes." >&2
        exit 1
    }
    as_root=(sudo)
fi

run() {
    echo "+ $*"
    "$@"
}
if command -v apt-get >/dev/null; then
    run "${as_root[@]}" apt-get install -y "${missing[@]/%libseccomp/libseccomp2}" ||
        { run "${as_root[@]}" apt-get update &&
            run "${as_root[@]}" apt-get install -y "${missing[@]/%libseccomp/libseccomp2}"; }
elif command -v dnf >/dev/null; then
    run "${as_root[@]}" dnf install -y "${missing[@]}"
elif command -v pacman >/dev/null; then
    run "${as_root[@]}" pacman -S --needed --noconfirm "${missing[@]}"
elif command -v zypper >/dev/null; then
    run "${as_root[@]}" zypper install -y "${missing[@]/%libseccomp/libseccomp2}"
elif command -v apk >/dev/null; then
    run "${as_root[@]}" apk add "${missing[@]}"
else
    echo "Missing: ${missing[*]}. Install them with this system's package manager." >&2
    exit 1
fi
