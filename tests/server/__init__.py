# SPDX-License-Identifier: Apache-2.0
"""Tests over HTTP: ``vllm serve`` as a user starts it, OpenAI clients as they are."""
