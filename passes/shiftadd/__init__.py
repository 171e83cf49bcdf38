"""Multiplications become shifts and additions."""
