# SPDX-License-Identifier: Apache-2.0
"""The command ``mindspeed-ms``: a module for every sub-command, loaded when it is called."""
