"""Studies: worlds × methods × seeds from one file, and tables with intervals."""

from poad.study.attempts import Cluster
from poad.study.page import tables
from poad.study.records import Results, read_results
from poad.study.run import compare_studies, run_study
from poad.study.spec import Study, named_settings, read_study, reported_jobs, search_jobs

__all__ = [
    "Cluster",
    "Results",
    "Study",
    "compare_studies",
    "named_settings",
    "read_results",
    "read_study",
    "reported_jobs",
    "run_study",
    "search_jobs",
    "tables",
]
