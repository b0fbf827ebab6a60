"""The world's users: how they respond, fitted on logs."""
