# SPDX-License-Identifier: Apache-2.0
"""What a configuration costs before it runs: parameters, memory, communication, time.

Everything here is arithmetic on the configuration; no rank, device or tensor is needed.
"""
