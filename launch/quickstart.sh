#!/usr/bin/env bash
# From a fresh clone to a segmented video: environment, embedded data set, training, evaluation,
# prediction, pictures; then the model that comes with the package on real things, where their packages
# can be had. About eleven minutes on two CPU cores; a second run reuses what is there.
#
#   bash launch/quickstart.sh [--steps N] [--workdir DIR] [--data_dir DIR] [-- --config.FIELD=VALUE ...]
#
# Needs Python 3.11 or newer and nothing else. What follows `--` goes to avs_jax.train.
set -euo pipefail
cd "$(dirname "$0")/.."

steps=1450
workdir=workdir/quickstart
data_dir=data
while [ $# -gt 0 ]; do
  case $1 in
    --steps=* | --workdir=* | --data_dir=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      ;;
    --steps | --workdir | --data_dir)
      [ $# -ge 2 ] || { echo "$1 needs a value; see --help" >&2; exit 2; }
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --help | -h)
      sed -n '2,8s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *)
      echo "unknown option $1; known: --steps N, --workdir DIR, --data_dir DIR, -- (options of avs_jax.train)" >&2
      exit 2
      ;;
  esac
done

source launch/environment.sh
prepare_environment ""

echo "== data: sounding_shapes, subset ms3"
python -m avs_jax.data.sounding_shapes.build --subset ms3 --data_dir "$data_dir"
python -m avs_jax.data.sounding_shapes.build --mp4 "$workdir/videos" --split test --count 1

echo "== train: $steps steps"
python -m avs_jax.train --config "configs/quickstart.py:steps=$steps" --workdir "$workdir" \
  --config.data.data_dir="$data_dir" "$@"

echo "== evaluate: held-out scenes with two or more objects, with their sound, muted, swapped"
python -m avs_jax.evaluate --checkpoint "$workdir" --split test --data_dir "$data_dir"

echo "== predict: a held-out video"
video=$(find "$workdir/videos" -name '*.mp4' | sort | head -n 1)
python -m avs_jax.predict "$video" --checkpoint "$workdir" --output "$workdir/overlay.mp4" \
  --masks "$workdir/masks" --fps 4

echo "== pictures"
python -m avs_jax.pictures --checkpoint "$workdir" --split test --count 4 --data_dir "$data_dir"

echo "== real pictures and sounds: the model that comes with the package, $workdir/real"
media=$data_dir/media real=
# Half a minute at a good connection. What was fetched stays for the next time.
patience=(timeout 120)
command -v timeout >/dev/null || patience=()
if [ ! -e "$media/media.json" ] && ! command -v apt-get >/dev/null; then
  echo "left out: real pictures and sounds come in packages of Debian, and there is no apt-get here"
elif [ ! -e "$media/media.json" ] && ! PYTHON=python "${patience[@]}" bash launch/fetch_media.sh "$media"; then
  echo "left out: real pictures and sounds cannot be had here (see above)"
elif python -m avs_jax.pictures --checkpoint lite --split test --count 4 --data_dir "$media" \
  --output "$workdir/real"; then
  real="  $workdir/real/strips.png        the same of real things, by the model that comes with the package"
fi

cat <<TEXT

Look at:
  $workdir/overlay.mp4          the video with what sounds marked, and its sound
  $workdir/strips.png           frame | truth | prediction of held-out clips
  $workdir/learning_curve.png
  $workdir/results.json         the figures of the table above
$real
Your own video, by the model that comes with the package, then by the one just trained:
  .venv/bin/avs-jax predict VIDEO
  .venv/bin/avs-jax predict VIDEO --model $workdir --output OVERLAY.mp4
TEXT
