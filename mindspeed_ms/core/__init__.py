# SPDX-License-Identifier: Apache-2.0
"""What training is made of: groups, split layers, optimizer, data, configuration."""
