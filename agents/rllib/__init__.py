"""Training through RLlib: env runner, learner, algorithm, export."""
