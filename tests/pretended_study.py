"""Small studies, and runs of them that nobody trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from synthetic_run import summary

from poad.config import dump
from poad.runs import Evaluation, Run, write_text
from poad.study.directory import StudyDirectory
from poad.study.spec import Job
from poad.study.workers import Task

SMALL: dict[str, Any] = {
    "streams": 2,
    "horizon": 4,
    "model": {"name": "tiny-kitchen", "device": "cpu"},
    "critic": {"hidden": [8]},
    "ppo": {"epochs": 1},
}
HOSTILE = "<script>alert('a')</script>"


def chain(steps: int = 16, **settings: Any) -> dict[str, Any]:
    return {
        "env": "tiny_worlds:tiny/Chain-v0",
        "steps": steps,
        "threshold": 0.5,
        "settings": SMALL | settings,
    }


def study_file(folder: Path, **changes: Any) -> Path:
    told: dict[str, Any] = {
        "name": "small",
        "question": f"Which one? {HOSTILE}",
        "worlds": {"chain": chain()},
        "methods": {"poad": {}, "ntpo": {"credit": {"method": "ntpo"}}},
        "seeds": [0, 1],
        "panel": {"episodes": 3, "points": 2},
        "compare": {"poad": "all"},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(told | changes, sort_keys=False))
    return path


def pretend(
    study: StudyDirectory,
    job: Job,
    success: list[float],
    metrics: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """A finished run that succeeded so often along the way, with more metrics of each iteration."""
    task = Task(study.runs / job.name)
    write_text(task.sibling(".yaml"), dump(job.config))
    with Run.create(task.path, job.config) as run:
        for i, rate in enumerate(success, 1):
            told = {"eval_success": rate, "eval_return": rate, "cpu_seconds": 2.0 * i}
            told |= {name: values[i - 1] for name, values in (metrics or {}).items()}
            run.log({"iteration": i, "env_steps": 8 * i, **told})
        ended = Evaluation(3, success[-1], (0.0, 1.0), 0.5, 3.0)
        modes = {"sampled": ended, "greedy": ended}
        cost = {"env_steps": 8 * len(success), "cpu_seconds": 2.0 * len(success)}
        run.write_summary(summary(evaluation=modes, **cost))
