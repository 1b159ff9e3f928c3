# SPDX-License-Identifier: Apache-2.0
"""``from mindformers import ...`` and ``python -m transformer...``, unchanged: an opt-in path.

``path/`` holds the packages ``mindformers`` and ``transformer``. They are importable only for those
who put that folder on their path; ``python -m mindspeed_ms.toolkit.compat path`` prints it.
"""
