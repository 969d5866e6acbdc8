#!/usr/bin/env bash
# Make a folder in which ARM64 Linux programs run on any other Debian-like machine: an emulator, a Debian arm64 root with
# Python, and the ARM64 wheels of onnxruntime and LiteRT. Nothing is installed, no root rights are needed.
#
#   tools/arm64_root.sh [FOLDER]        (build/arm64; a finished folder is left as it is)
#   FOLDER/run FOLDER/root/usr/bin/python3 script.py
#
# Needs apt-get, dpkg-deb and pip. PYTHON names the Python whose pip is used, DEBIAN_MIRROR another mirror than the
# system's. For correctness only: emulated times are not a device's times.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$here/build/arm64}
suite=trixie # its emulator is version 10; version 7 crashes onnxruntime and LiteRT
cpu=cortex-a72 # a Raspberry Pi 4's; the emulator's default has instructions that neither runtime meets on a device
packages="python3 libstdc++6"
wheels=${SMIDGEN_ARM64_WHEELS:-numpy onnxruntime ai-edge-litert}
key="$suite $cpu $packages $wheels 1"

if [ -f "$folder/.made" ] && [ "$(cat "$folder/.made")" = "$key" ]; then
  echo "$folder is there already"
  exit 0
fi
for tool in apt-get dpkg-deb "${PYTHON:-python3}"; do
  command -v "$tool" >/dev/null || { echo "arm64_root: '$tool' is missing; this needs a Debian-like system" >&2; exit 2; }
done
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
  grep -E '/debian/?$' | head -n 1)}
[ -n "$mirror" ] || { echo "arm64_root: no Debian mirror is set up; name one in DEBIAN_MIRROR" >&2; exit 2; }

rm -rf "$folder"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# An apt of its own, for one architecture: lists, cache and an empty dpkg database in a folder. fetch ARCH PACKAGE…
# leaves the packages and all they depend on (or, with --alone first, themselves only) in apt-ARCH/debs.
fetch() {
  local arch=$1 place=$folder/apt-$1
  shift
  mkdir -p "$place/lists/partial" "$place/debs/partial" "$place/parts"
  : >"$place/status"
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$mirror" "$suite" >"$place/sources"
  local options=(
    -qq -o APT::Architecture="$arch" -o APT::Architectures="$arch" -o APT::Sandbox::User= -o Dir::State="$place"
    -o Dir::State::lists="$place/lists" -o Dir::State::status="$place/status" -o Dir::Cache="$place"
    -o Dir::Cache::archives="$place/debs" -o Dir::Etc::sourcelist="$place/sources" -o Dir::Etc::sourceparts="$place/parts"
    -o Debug::NoLocking=1
  )
  apt-get "${options[@]}" update
  if [ "$1" = --alone ]; then
    shift
    (cd "$place/debs" && apt-get "${options[@]}" download "$@")
  else
    apt-get "${options[@]}" install --yes --no-install-recommends --download-only "$@"
  fi
}

fetch "$(dpkg --print-architecture)" --alone qemu-user
dpkg-deb -x "$folder"/apt-*/debs/qemu-user_*.deb "$folder/emulator"
rm -rf "$folder"/apt-*

# shellcheck disable=SC2086 # a list of names
fetch arm64 $packages
mkdir -p "$folder/root/usr/lib"
ln -s usr/lib "$folder/root/lib"
for package in "$folder"/apt-arm64/debs/*.deb; do
  dpkg-deb --fsys-tarfile "$package" | tar -x -C "$folder/root" --keep-directory-symlink --no-same-owner --exclude ./dev
done
rm -rf "$folder/apt-arm64"

cat >"$folder/run" <<END
#!/bin/sh
PYTHONPATH="$folder/site\${PYTHONPATH:+:\$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 \\
  exec "$folder/emulator/usr/bin/qemu-aarch64" -cpu $cpu -L "$folder/root" "\$@"
END
chmod +x "$folder/run"

version=$("$folder/run" "$folder/root/usr/bin/python3" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# shellcheck disable=SC2086 # a list of names
"${PYTHON:-python3}" -m pip install --quiet --target "$folder/site" --platform manylinux_2_28_aarch64 \
  --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
  --python-version "$version" --implementation cp --only-binary=:all: $wheels
"$folder/run" "$folder/root/usr/bin/python3" -c \
  'import platform, numpy, onnxruntime; print(platform.machine(), "onnxruntime", onnxruntime.__version__)'
echo "$key" >"$folder/.made"
du -sh "$folder"
