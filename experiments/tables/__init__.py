"""One file for each table of results."""
