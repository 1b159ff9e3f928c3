# SPDX-License-Identifier: Apache-2.0
"""The only room that knows the device, the launcher, the environment or a private MindSpore name.

``env`` is imported first: MindSpore reads its log level and thread counts while it loads.
"""

from mindspeed_ms.backend import env, rank_table

env.prepare_import(rank_table.local_ranks())
