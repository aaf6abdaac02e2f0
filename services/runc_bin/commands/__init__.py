"""One module per verb: `run(context, log)` does it and returns the exit code."""
