"""Result files of a run folder -> plots -> one self-contained HTML page."""

from semalign.report.build import build_report

__all__ = ["build_report"]
