"""The JSON schema of ``report.json``, made from the statement's own types and docstrings.

``python -m simulations.audit.report.schema > simulations/audit/docs/report.schema.json`` writes it
that is kept beside the documentation.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import TypeAdapter

from simulations.audit.report.statement import AuditStatement


def report_schema() -> dict[str, Any]:
    """JSON schema (2020-12): every field with its description, nothing else allowed."""
    schema = TypeAdapter(AuditStatement).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The schema as the file has it."""
    return json.dumps(report_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
