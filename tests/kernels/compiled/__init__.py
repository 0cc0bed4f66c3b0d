"""What the compilers make of the Triton kernels, for chips that need not be there.

`python -m tests.kernels.compiled` compiles the launches that the operations plan and reads
registers, instructions and bytes moved from the result.
"""
