# SPDX-License-Identifier: Apache-2.0
"""Reading files that somebody else wrote, and checksums: used by every room that has files."""
