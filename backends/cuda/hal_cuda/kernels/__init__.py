"""Kernels in Triton's language that stand around calls of NVIDIA's libraries."""
