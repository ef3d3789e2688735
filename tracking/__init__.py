"""What surrounds a run: identity, checked construction, records, loggers, report. Imports no sibling package."""
