"""From an evaluation that has just run to its page."""

from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from avs_jax.data import load_class_names, transforms
from avs_jax.reporting import clips, inside, page
from avs_jax.scoring.evaluators import Evaluator
from avs_jax.scoring.records import Records
from avs_jax.types import PyTree
from avs_jax.weights import trained, zoo
from avs_jax.weights.trained import Loaded


def report_run(
    folder: epath.Path,
    evaluator: Evaluator,
    variables: PyTree,
    loaded: Loaded,
    config: ml_collections.ConfigDict,
    records: Mapping[str, Records],
    results: Mapping[str, Any],
    about: Mapping[str, Any],
) -> epath.Path:
    """Writes the page of a run; the clips that it shows go through the model once more.

    Args:
      variables, config: the evaluator's; loaded: the model and where it comes from.
      records: all that the evaluator gave. results, about: see `page.Content`.

    Raises:
      BadValueError: the folder cannot be written.
    """
    own = records["own"]
    best, worst = clips.choose(own)
    shown = clips.run(evaluator, variables, config.data.size, own, best + worst)
    drawn, why_not = draw_inside(loaded, config, evaluator.source, best[:1] + worst[:1])
    log = epath.Path(zoo.own_folder(about["checkpoint"])) / "metrics.jsonl"
    content = page.Content(
        results=results,
        about=about,
        split=evaluator.split,
        records=records,
        class_names=load_class_names(config.data.name),
        semantic=own.kind == "semantic",
        temperature=loaded.temperature,
        best=shown[: len(best)],
        worst=shown[len(best) :],
        inside=drawn,
        no_inside=why_not,
        log=trained.read_curves(log) if log.exists() else {},
    )
    return page.write(folder, page.build(content))


def draw_inside(
    loaded: Loaded, config: ml_collections.ConfigDict, source: Any, places: list[int]
) -> tuple[list[tuple[str, str, np.ndarray]], str]:
    """[(clip, kind, picture)] of what `inside` draws of a model, or why there is none."""
    kinds = inside.kinds_of(loaded)
    if not kinds:
        return [], f"There is no picture of what goes on inside {config.model.name}."
    network = inside.Network(loaded._replace(config=ml_collections.FrozenConfigDict(config)))
    fit = transforms.Resize(config.data.size)
    drawn = []
    for place in places:
        clip, other = (
            fit.map(source[i]) for i in (place, (place + len(source) // 2) % len(source))
        )
        sample = inside.Sample(clip, other, network, width=clips.CELL)
        drawn += [(clip["id"], kind, draw(network, sample)) for kind, draw in kinds.items()]
    return drawn, ""


def report_runs(folder: epath.Path, results: Mapping[str, Any]) -> epath.Path:
    """Writes the page of several runs, whose own are in its run_0, run_1, ...

    results: see `seeds.summarise`.
    """
    pages = {name: f"run_{i}/{page.NAME}" for i, name in enumerate(results["runs"])}
    return page.write(folder, page.build_summary(results, pages))
