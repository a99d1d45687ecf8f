"""A comparison as one page: what its summaries say, drawn and told, in HTML, Markdown and Parquet."""

from __future__ import annotations

from rewardzoo.errors import require

for _module in ("matplotlib", "jinja2", "pyarrow"):
    require(_module, extra="compare")

from rewardzoo.clients.compare.report.page import write_report  # noqa: E402

__all__ = ["write_report"]
