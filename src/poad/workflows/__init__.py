"""Workflows on whole runs, from training to export; and models that are fetched or made."""

from poad.workflows.evaluate import evaluate_run
from poad.workflows.export import export_run
from poad.workflows.fetch import convert_gguf, fetch_model
from poad.workflows.generalize import generalize_run
from poad.workflows.inspect import Selection, inspect_file, inspect_runs
from poad.workflows.language import TASKS, evaluate_tasks, evaluate_text
from poad.workflows.load import LoadedRun, Weights, check_world, load_weights
from poad.workflows.on_cluster import Placement, train_on_cluster
from poad.workflows.pretrain import TinyModel, pretrain_model
from poad.workflows.prior import show_prior
from poad.workflows.train import resume_run, train_run

__all__ = [
    "TASKS",
    "LoadedRun",
    "Placement",
    "Selection",
    "TinyModel",
    "Weights",
    "check_world",
    "convert_gguf",
    "evaluate_run",
    "evaluate_tasks",
    "evaluate_text",
    "export_run",
    "fetch_model",
    "generalize_run",
    "inspect_file",
    "inspect_runs",
    "load_weights",
    "pretrain_model",
    "resume_run",
    "show_prior",
    "train_on_cluster",
    "train_run",
]
