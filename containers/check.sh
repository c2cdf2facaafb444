#!/usr/bin/env bash
# Build the image where there is no registry to pull from, and run the demo in it: without network, as nobody, with one
# folder to write to and no /tmp. Prints what the image weighs and fails over 1.6 GB. Takes some minutes.
#   containers/check.sh [FOLDER]     FOLDER (default build/containers) keeps the base and the wheels for the next time
# Needs root, buildah, debootstrap, and pip for the Python that Debian's current release here has.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$(realpath -m "${1:-build/containers}")
limit_mb=1600

fail() { echo "containers/check.sh: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "needs root"
for program in buildah debootstrap unshare; do
  command -v "$program" > /dev/null || fail "$program not found: apt install buildah debootstrap util-linux"
done
buildah() { command buildah --root "$place/storage" --runroot "$place/run" "$@"; }
mkdir -p "$place"

# 1. In place of python:3.11-slim: a bare Debian with its Python.
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
if [ ! -e "$place/base.tar" ]; then
  rm -rf "$place/base"
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$release" "$place/base" > "$place/base.log"
  rm -rf "$place"/base/var/{cache/apt/*,lib/apt/lists/*} "$place"/base/usr/share/{doc,locale,man}/*
  tar -C "$place/base" -cf "$place/base.part" . && mv "$place/base.part" "$place/base.tar"
  rm -rf "$place/base"
fi
base=$(buildah from scratch)
buildah add --quiet "$base" "$place/base.tar" / > /dev/null
buildah commit --quiet --rm "$base" mmln-base > /dev/null

# 2. In place of PyPI: wheels, got by the pip outside.
version=$(tar -tf "$place/base.tar" | sed -n 's|^\./usr/bin/python\(3\.[0-9]*\)$|\1|p')
wheels=$place/wheels-$(cat setup.py constraints.txt | sha256sum | cut -c 1-12)
if [ ! -d "$wheels" ]; then
  "python$version" -m pip wheel --quiet -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
    --wheel-dir "$wheels.part" . setuptools
  rm -f "$wheels.part"/mmln_pipeline-*
  mv "$wheels.part" "$wheels"
fi

# 3. The image.
package=$(sed -n 's/^__version__.* = "\(.*\)"/\1/p' mmln_pipeline/__init__.py)
revision=$(git rev-parse HEAD 2> /dev/null || echo unknown)
buildah bud --quiet --isolation chroot --volume "$wheels:/wheels:ro" -f containers/Dockerfile -t mmln \
  --build-arg BASE=localhost/mmln-base --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheels \
  --build-arg VERSION="$package" --build-arg REVISION="$revision" . > /dev/null
buildah inspect --type image --format '{{range $k, $v := .OCIv1.Config.Labels}}{{$k}}={{$v}}{{"\n"}}{{end}}' mmln

# 4. The demo: a root that is read-only, /tmp with it, no network, nobody's user id, one folder to write to.
container=$(buildah from mmln)
trap 'buildah umount "$container" > /dev/null; buildah rm "$container" > /dev/null' EXIT
root=$(buildah mount "$container")
size_mb=$(du -s --apparent-size --block-size=1000000 "$root" | cut -f1)
echo "size: $size_mb MB, of which $(du -s --apparent-size --block-size=1000000 "$root/opt/mmln" | cut -f1) MB in /opt/mmln"
out=$place/out
rm -rf "$out" && mkdir -p "$out" && chown 65534:65534 "$out"
mkdir -p "$root/out"
mapfile -t environment < <(buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$container" | sed '/^$/d')
unshare --mount --net --pid --fork --kill-child env -i bash -euc '
  root=$1 out=$2; shift 2
  mount --bind "$root" "$root"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount --bind "$out" "$root/out"
  mount -o remount,bind,ro "$root"
  ! chroot --userspec=65534:65534 "$root" touch /tmp/file 2> /dev/null || { echo "/tmp can be written to" >&2; exit 1; }
  exec chroot --userspec=65534:65534 "$root" env -i "$@" sh -c "
    cd / && mmln-bids --version && python -m mmln_pipeline.demo /out && grep -A3 Container /out/derivatives/dataset_description.json"
' - "$root" "$out" "${environment[@]}"
[ "$size_mb" -le "$limit_mb" ] || fail "the image has $size_mb MB, more than $limit_mb"
