"""Result files of a run folder -> plots -> one self-contained HTML page."""

from semalign.report.build import build_report
from semalign.report.runs import build_comparison

__all__ = ["build_comparison", "build_report"]
