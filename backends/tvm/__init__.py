"""Code generation through TVM: kernels of ours for each region of the graph, compiled into one library."""
