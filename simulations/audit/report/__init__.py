"""The audit report: one statement, in words for everybody, in tables and figures for experts."""
