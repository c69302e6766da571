"""Speed and cost against the peers, on real servers, run by hand: `make bench`. Measured: benchmarks/README.md."""
