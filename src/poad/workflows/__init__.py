"""Whole stories of a run: train, evaluate, export, generalize."""

from poad.workflows.generalize import generalize_run
from poad.workflows.language import TASKS, examine_tasks, examine_text
from poad.workflows.train import (
    check_world,
    evaluate_run,
    export_run,
    free_path,
    load_run,
    resume_run,
    train_run,
)

__all__ = [
    "TASKS",
    "check_world",
    "evaluate_run",
    "examine_tasks",
    "examine_text",
    "export_run",
    "free_path",
    "generalize_run",
    "load_run",
    "resume_run",
    "train_run",
]
