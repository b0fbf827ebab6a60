"""Learned users and the recommender's own models, fitted on logged data."""
