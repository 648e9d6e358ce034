# SPDX-License-Identifier: Apache-2.0
"""What examples/docker/ says, against what a server does."""
