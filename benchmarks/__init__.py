"""Speed and cost against the peers, on real servers, run by hand: `make bench`. What was measured: benchmarks/README.md."""
