"""Server rules, one a file."""
