# SPDX-License-Identifier: Apache-2.0
"""``vllm-lladav eval``: accuracy of settings against what they cost."""
