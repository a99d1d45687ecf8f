"""What the service costs and survives: `python -m benchmarks.serving`, figures beside a peer's in one run."""
