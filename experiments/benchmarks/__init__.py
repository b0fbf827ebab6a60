"""What is timed, one file for each subject."""
