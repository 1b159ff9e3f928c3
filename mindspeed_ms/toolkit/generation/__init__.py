# SPDX-License-Identifier: Apache-2.0
"""Text generation with the options, and the results, of ``transformers``' ``generate``."""
