"""Reinforcement learning for rankers, one file for each method; every one keeps the method contract."""
