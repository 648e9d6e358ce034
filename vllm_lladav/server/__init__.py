# SPDX-License-Identifier: Apache-2.0
"""Between the HTTP server and the engine: who gets in, how it ends, how it stops."""
