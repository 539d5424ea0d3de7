"""A report that grows case by case: printed as tables, kept in a JSON file, within a time."""

import gc
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from avs_jax.weights.trained import first_line

TIME_WAS_UP = "not run: time was up"
FAILED = "failed: "
OUT_OF_MEMORY = "out of memory"


class TimeIsUpError(Exception):
    """A case waited for something until there was no time left."""


class Budget:
    """Seconds from now on in which something new may begin."""

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic):
        self._now, self._end = now, now() + 60 * minutes

    def left(self) -> float:
        """Seconds; less than 0 where the time is over."""
        return self._end - self._now()


class Column(NamedTuple):
    """Of a table: its title, the figure of a row that it shows, and how (a format)."""

    title: str
    key: str
    form: str = ""


class Report:
    """Sections of rows {name of a figure: value}; a row that is not as wanted has a "note"."""

    def __init__(self, output: Path, about: dict, budget: Budget):
        """about: what heads the file, of JSON's types."""
        self.output, self.budget = output, budget
        self.found = about | {"sections": {}}
        self._columns: Sequence[Column] = ()
        self._rows: list[dict] = []
        self._longest = 0.0

    def begin(self, title: str, columns: Sequence[Column]) -> None:
        """Rows are from now on of this section."""
        self._columns, self._longest = columns, 0.0
        self._rows = self.found["sections"].setdefault(title, [])
        titles = [column.title for column in columns] + ["note"]
        print(f"\n## {title}\n\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)

    def run(self, case: dict, measure: Callable[[], dict]) -> dict:
        """A row: of the case, and of what `measure` finds; its note where nothing was found.

        It does not begin where the time left is over, or shorter than the longest row so far of
        this section.
        """
        if self.budget.left() <= self._longest:
            row = case | {"note": TIME_WAS_UP}
        else:
            began = time.monotonic()
            try:
                row = case | measure()
            except TimeIsUpError:
                row = case | {"note": TIME_WAS_UP}
            except Exception as error:  # whatever a library raises: the other rows are worth it
                row = case | {"note": describe(error)}
            gc.collect()  # what failed holds its arrays in circles
            self._longest = max(self._longest, time.monotonic() - began)
        self._rows.append(row)
        print(make_line(self._columns, row), flush=True)
        self._write()
        return row

    def _write(self) -> None:
        """After each row, so that a run that is cut off has left what it had."""
        hidden = self.output.with_name(f".{self.output.name}.part")
        hidden.write_text(json.dumps(self.found, indent=1) + "\n")
        hidden.replace(self.output)

    def count(self, note: str) -> int:
        """Rows whose note begins so."""
        rows = [row for section in self.found["sections"].values() for row in section]
        return sum(row.get("note", "").startswith(note) for row in rows)


def make_line(columns: Sequence[Column], row: dict) -> str:
    """Of a Markdown table; a figure that there is not leaves its cell empty."""
    cells = [format(row[c.key], c.form) if row.get(c.key) is not None else "" for c in columns]
    return f"| {' | '.join([*cells, row.get('note', '')])} |"


def describe(error: Exception) -> str:
    """A note: out of memory, or the kind of error and its first line."""
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    return f"{FAILED}{type(error).__name__}: {first_line(error)}"
