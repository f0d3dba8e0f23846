"""Studies: worlds × methods × seeds, and one table with intervals."""

from poad.study.page import Table, in_markdown, interval, tables
from poad.study.run import compare_studies, run_study
from poad.study.spec import Study, main_jobs, read_study, search_jobs

__all__ = [
    "Study",
    "Table",
    "compare_studies",
    "in_markdown",
    "interval",
    "main_jobs",
    "read_study",
    "run_study",
    "search_jobs",
    "tables",
]
