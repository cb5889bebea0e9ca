"""The Triton kernels. Importing a module of this package imports Triton, so only the operators do, when they launch."""
