# SPDX-License-Identifier: Apache-2.0
"""Serve LLaDA-V, a masked-diffusion vision-language model, with vLLM."""

__version__ = "0.1.0"
