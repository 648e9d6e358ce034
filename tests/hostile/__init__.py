# SPDX-License-Identifier: Apache-2.0
"""What no client should send, sent to a real server."""
