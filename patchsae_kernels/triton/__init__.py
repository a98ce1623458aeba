"""Kernels for GPUs in Triton, a file for each family of ops: what is launched, and below it the kernels themselves.

What makes an op is in a file of its name; parts that several ops share (`pack`, `hits`, `pick`, ...) are beside them.
"""
