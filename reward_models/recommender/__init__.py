"""The operator's recommender: predictor, candidate source and list evaluator, fitted on its own log."""
