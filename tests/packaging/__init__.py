# SPDX-License-Identifier: Apache-2.0
"""The release script, what it builds, and what is then installed."""
