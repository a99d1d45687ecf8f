"""Bulk scoring: what outgrows a request, through Ray Data actors into Parquet, and on again after a kill."""

from rewardzoo.services.bulk.rows import Columns
from rewardzoo.services.bulk.run import BulkConfig, BulkRun

__all__ = ["BulkConfig", "BulkRun", "Columns"]
