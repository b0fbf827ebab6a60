"""Policies and how they are trained, one file per method."""
