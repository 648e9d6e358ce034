# SPDX-License-Identifier: Apache-2.0
"""The live canvas: what an API server shows of a request while it is denoised."""
