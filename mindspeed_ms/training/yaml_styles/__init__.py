# SPDX-License-Identifier: Apache-2.0
"""The styles in which YAML files write a configuration."""
