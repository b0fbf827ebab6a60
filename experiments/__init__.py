"""Command lines, recipes, tables, plots and benchmarks; run from the clone as ``python -m experiments.<verb>``."""
