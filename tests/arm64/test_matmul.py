"""The matrix kernels' own tests, with the kernels run on emulated ARM CPUs."""

from tests.compiler.test_matmul import *  # noqa: F403 - conftest.py keeps those that run a kernel
