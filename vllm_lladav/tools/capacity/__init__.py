# SPDX-License-Identifier: Apache-2.0
"""``vllm-lladav capacity``: what a machine serves, computed before there is one.

Pure arithmetic from the shapes of model and request and a machine's figures;
``docs/capacity.md`` has the formulas. torch and transformers are loaded only to read a
config or to tile an image.
"""
