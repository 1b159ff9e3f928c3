# SPDX-License-Identifier: Apache-2.0
"""What prepares a start of several ranks: rank tables of one host, and of several."""
