"""Weights with zeros in structures that kernels can skip."""
