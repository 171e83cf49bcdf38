"""`prune` on graphs: what vanishes, what the zeros are shared out by, what is refused."""
