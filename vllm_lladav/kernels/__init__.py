# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of a GPU. Each has a twin in plain torch, which CPUs run."""
