# SPDX-License-Identifier: Apache-2.0
"""What pruning keeps of a picture: visual tokens mapped back to it and drawn."""
