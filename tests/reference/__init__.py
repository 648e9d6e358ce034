# SPDX-License-Identifier: Apache-2.0
"""Slow, plain PyTorch versions of what the engine computes. No vLLM in here."""
