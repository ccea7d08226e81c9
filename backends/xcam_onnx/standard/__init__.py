"""The standard form of a graph: quantised and fused operators of runtimes and optimisers, in standard operators."""
