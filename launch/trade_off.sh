#!/usr/bin/env bash
# AVESFormer's decoder in seven forms: how well each hears on the quickstart's data, and how fast it is.
# About five minutes a form and 1000 steps on two idle cores; what is there is not made again.
#
#   bash launch/trade_off.sh [--steps N] [--workdir DIR] [--data_dir DIR]
#
# Writes DIR/trade_off.json and DIR/trade_off.png: mIoU of the held-out split over frames per second.
set -euo pipefail
cd "$(dirname "$0")/.."

steps=1450
workdir=workdir/trade_off
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
      sed -n '2,7s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "unknown option $1; known: --steps N, --workdir DIR, --data_dir DIR" >&2
      exit 2
      ;;
  esac
done

source launch/environment.sh
prepare_environment ""
python -m avs_jax.data.sounding_shapes.build --subset ms3 --data_dir "$data_dir"

# The network of configs/quickstart.py, whose own form is the first.
small=(--model avesformer --backbone small_resnet --audio_backbone audio_cnn --size 96 --runs 15
  --field dim=64 --field num_heads=4 --field pqg_layers=1 --field pqg_hidden=256
  --field norm_groups=8 --field "head_widths=[32,16]")
forms=(
  "eighth:decoder_stride=8 refine=[] early_stages=1 late_stages=2 late_hidden=256"
  "eighth_narrow:decoder_stride=8 refine=[] early_stages=1 late_stages=2 late_hidden=128"
  "eighth_no_early:decoder_stride=8 refine=[] early_stages=0 late_stages=2 late_hidden=256"
  "sixteenth:decoder_stride=16 refine=[] early_stages=1 late_stages=2 late_hidden=256"
  "refined:decoder_stride=16 refine=[32,16] early_stages=1 late_stages=2 late_hidden=256"
  "refined_narrow:decoder_stride=16 refine=[16,8] early_stages=1 late_stages=2 late_hidden=256"
  "refined_short:decoder_stride=16 refine=[32,16] early_stages=1 late_stages=1 late_hidden=256"
)
for form in "${forms[@]}"; do
  name=${form%%:*}
  folder=$workdir/$name
  read -ra fields <<<"${form#*:}"
  echo "== $name: ${fields[*]}"
  flags=() settings=()
  for field in "${fields[@]}"; do
    flags+=(--field "$field")
    value=${field#*=}
    value=${value/\[/(}
    settings+=("--config.model.${field%%=*}=${value/\]/)}")
  done
  [ -e "$folder/results.json" ] || {
    python -m avs_jax.train --config "configs/quickstart.py:steps=$steps" --workdir "$folder/run" \
      --config.data.data_dir="$data_dir" "${settings[@]}"
    python -m avs_jax.evaluate --checkpoint "$folder/run" --split test --data_dir "$data_dir" \
      --output "$folder"
  }
  python -m avs_jax.benchmark "${small[@]}" "${flags[@]}" |
    tail -n 1 >"$folder/benchmark.json"
done

python - "$workdir" <<'PYTHON'
import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

workdir = Path(sys.argv[1])
rows = []
for path in sorted(workdir.glob("*/benchmark.json")):
    row = json.loads(path.read_text())["rows"][0]
    miou = json.loads(path.with_name("results.json").read_text())["test/miou"]
    rows.append({"form": path.parent.name, "miou": miou} | row)
    print(f"{path.parent.name:<16} mIoU {miou:.3f}  {row['frames_per_second']:7.1f} frames/s")
(workdir / "trade_off.json").write_text(json.dumps(rows, indent=2) + "\n")
figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
FigureCanvasAgg(figure)
axes = figure.subplots()
for row in rows:
    axes.plot(row["frames_per_second"], row["miou"], "o")
    axes.annotate(row["form"], (row["frames_per_second"], row["miou"]), fontsize=8)
axes.set_xlabel("frames/s")
axes.set_ylabel("mIoU, held-out scenes")
axes.grid(alpha=0.25)
figure.savefig(workdir / "trade_off.png")
PYTHON
