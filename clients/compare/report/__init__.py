"""A comparison as one page: what its summaries say, drawn and told, in HTML, Markdown and Parquet."""

from __future__ import annotations

from rewardzoo.clients.compare.report.page import write_report

__all__ = ["write_report"]
