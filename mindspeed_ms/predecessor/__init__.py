# SPDX-License-Identifier: Apache-2.0
"""What scripts of the predecessor call: its own training loop, its optimizers, its cells.

Thin adapters over the engine, under the predecessor's import paths (``mindspeed_ms/old_names.py``
has the table). Nothing else imports this room. ``docs/predecessor.md`` lists what differs.
"""
