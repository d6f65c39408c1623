"""The generated app beside its peers, in one run: `python -m benchmarks` from the root of the repository."""
