"""The report of a results folder: one HTML file that needs nothing else, neither network nor torch."""

from bench.report.page import write_report

__all__ = ["write_report"]
