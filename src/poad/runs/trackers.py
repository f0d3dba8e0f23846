"""Optional trackers that receive a copy of a run's metrics: TensorBoard, wandb and trackio.

Each is an extra to install. metrics.jsonl remains complete without them. A tracker that cannot be
opened is an error before training starts; one that fails later is dropped with a warning. They draw
against environment steps, and names are in groups: train/, eval/, critic/, world/, time/ and
progress/. Where a service files a run is set by ``tracking``; wandb's own environment variables,
such as WANDB_PROJECT, take precedence. wandb and trackio also show pages, such as sample episodes.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from poad.config import TrackingConfig
from poad.errors import TrackerError
from poad.runs.codec import plain


class Tracker:
    """A service that receives metrics until it fails for the first time.

    Args:
        name: of the service.
        send: sends numbers, with environment steps so far.
        end: closes it.
        show: sends an HTML page by a name, with environment steps so far; None where it shows none.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[dict[str, float], int], None],
        end: Callable[[], None],
        show: Callable[[str, str, int], None] | None = None,
    ) -> None:
        self.name = name
        self._send = send
        self._end = end
        self._show = show
        self._alive = True

    @property
    def shows_pages(self) -> bool:
        """Whether the service shows pages, and has not failed."""
        return self._alive and self._show is not None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the finite metrics; NaN stands for a mean over nothing yet and is not sent.

        Args:
            metrics: numbers by the names of metrics.jsonl, which become those of `grouped`.
            step: environment steps so far.
        """
        finite = {grouped(k): float(value) for k, value in metrics.items() if math.isfinite(value)}
        self._try(self._send, finite, step)

    def show(self, name: str, page: str, step: int) -> None:
        """Send an HTML page, where the service shows pages."""
        if self._show is not None:
            self._try(self._show, name, page, step)

    def close(self) -> None:
        """Flush and close."""
        self._try(self._end)
        self._alive = False

    def _try(self, action: Callable[..., None], *arguments: Any) -> None:
        if not self._alive:
            return
        try:
            action(*arguments)
        except Exception as error:  # no failure of a service may end a training
            self._alive = False
            warnings.warn(
                f"The tracker {self.name} failed ({type(error).__name__}: {error}) and is dropped. "
                "The run goes on, and metrics.jsonl remains complete.",
                stacklevel=4,
            )


_GROUPS = {
    "critic": ("explained_variance", "value_", "critic_", "lam_actor"),
    "eval": ("eval_",),
    "progress": ("iteration", "env_steps", "episodes", "tokens"),
    "time": ("collect_", "update_", "cpu_", "wall_", "steps_per_"),
}


def grouped(name: str) -> str:
    """Return a metric's name within its group: ``kl`` becomes ``train/kl``."""
    if "/" in name:  # the world's own, and final evaluations
        return name
    for group, beginnings in _GROUPS.items():
        if name.startswith(beginnings):
            return f"{group}/{name.removeprefix('eval_')}"
    return f"train/{name}"


def open_trackers(
    names: Sequence[str], path: Path, run_id: str, config: Mapping[str, Any], first: int
) -> list[Tracker]:
    """Open every tracker that ``names`` lists.

    Args:
        names: the trackers.
        path: the directory of the run.
        run_id: tells the run from others of its name.
        config: its settings.
        first: the first environment step that will be logged. What a tracker may have beyond is
            from iterations that a resumed run took back.

    Raises:
        TrackerError: a package is missing, or a service does not start.
    """
    openers = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
    opened = []
    for name in names:
        try:
            opened.append(openers[name](path, run_id, config, first))
        except ImportError as error:
            raise TrackerError(
                f"The tracker {name} needs the package {name}, which is not installed ({error}). "
                f"Install it with `pip install {name}`, or leave it out of `trackers`."
            ) from error
        except Exception as error:
            raise TrackerError(
                f"The tracker {name} does not start ({type(error).__name__}: {error}). "
                "Repair it, or leave it out of `trackers`."
            ) from error
    return opened


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of some trackers are installed, without importing them.

    Raises:
        TrackerError: a package is missing.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise TrackerError(
                f"The package {name} is not installed. Install it with `pip install {name}`, or "
                "leave it out of --trackers."
            )


def _tensorboard(path: Path, run_id: str, config: Mapping[str, Any], first: int) -> Tracker:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(
        str(path / "tensorboard"), purge_step=first
    )

    writer.add_text("configuration", f"```json\n{json.dumps(plain(config), indent=2)}\n```", first)

    def send(metrics: dict[str, float], step: int) -> None:
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return Tracker("tensorboard", send, writer.close)


def _wandb(path: Path, run_id: str, config: Mapping[str, Any], first: int) -> Tracker:
    wanted = _tracking(path, config)
    ours = {
        "WANDB_PROJECT": ("project", wanted["project"]),
        "WANDB_ENTITY": ("entity", wanted["entity"]),
        "WANDB_RUN_GROUP": ("group", wanted["group"]),
        "WANDB_TAGS": ("tags", list(wanted["tags"]) or None),
        "WANDB_NAME": ("name", wanted["name"]),
        "WANDB_RUN_ID": ("id", run_id),
        "WANDB_RESUME": ("resume", "allow"),
        "WANDB_DIR": ("dir", str(path)),
    }
    # What is not handed over, wandb takes from its environment variables.
    free = [setting for variable, setting in ours.items() if variable not in os.environ]
    chosen = {name: value for name, value in free if value is not None}
    wandb = importlib.import_module("wandb")
    run = wandb.init(config=dict(config), **chosen)
    return Tracker(
        "wandb",
        lambda metrics, step: run.log(metrics, step=step),
        run.finish,
        lambda name, page, step: run.log({name: wandb.Html(page, inject=False)}, step=step),
    )


def _trackio(path: Path, run_id: str, config: Mapping[str, Any], first: int) -> Tracker:
    trackio = importlib.import_module("trackio")
    wanted = _tracking(path, config)
    name = f"{wanted['name']}-{run_id[:6]}"  # trackio identifies runs by name alone
    filed = {"project": wanted["project"], "group": wanted["group"], "name": name}
    trackio.init(**filed, config=dict(config), resume="allow")
    return Tracker(
        "trackio",
        lambda metrics, step: trackio.log(metrics, step=step),
        trackio.finish,
        lambda name, page, step: trackio.log({name: trackio.Html(page, inject=False)}, step=step),
    )


def _tracking(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a run is to be filed; its name is that of its directory if none is set."""
    wanted = asdict(TrackingConfig()) | dict(config.get("tracking", {}))
    return wanted | {"name": wanted["name"] or path.name}
