"""Where numbers go: the console, JSON lines, TensorBoard. Only the first process writes."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import tensorboardX
from tqdm import tqdm


class Logs:
    """Writes scalars of a run to `workdir/metrics.jsonl`, `workdir/tensorboard/` and stderr."""

    def __init__(self, workdir: Path):
        self.path = Path(workdir) / "metrics.jsonl"
        self.main = jax.process_index() == 0
        self._board_folder = str(Path(workdir) / "tensorboard")
        self._board = None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One JSON line {"step", "time", name: value, ...} and one point per name."""
        if not self.main:
            return
        scalars = {name: float(value) for name, value in scalars.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | scalars) + "\n")
        if self._board is None:
            self._board = tensorboardX.SummaryWriter(self._board_folder)
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """A line for whoever watches, above any progress bar."""
        if self.main:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()

    def rewind(self, step: int) -> None:
        """Drops what was written after `step`: a resumed run writes it again."""
        if self.main and self.path.exists():
            self._board = tensorboardX.SummaryWriter(self._board_folder, purge_step=step + 1)
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line) <= step]
            if len(kept) < len(lines):
                self.path.write_text("".join(kept))

    def close(self) -> None:
        """Flushes TensorBoard."""
        if self._board is not None:
            self._board.close()


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line cut off by a kill
        return float("inf")
