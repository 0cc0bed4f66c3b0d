"""Compilation of the Triton kernels for GPUs that are not present.

`python -m tests.kernels.compiled` compiles the launches that the operations plan, and reports
registers, spilled registers and shared memory.
"""
