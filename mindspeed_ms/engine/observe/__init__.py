# SPDX-License-Identifier: Apache-2.0
"""What is written down about a run while it trains: curves, lines, its record.

The loop speaks to one object, ``observer.Observer``. What it is told becomes figures
(``figures``), which every writer takes alike.
"""
