# SPDX-License-Identifier: Apache-2.0
"""The page that draws denoising: files for a browser, and how they are served."""
