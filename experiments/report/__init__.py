"""What is shown of results: frames, plots, the HTML report and the Markdown page."""
