# SPDX-License-Identifier: Apache-2.0
"""A place for data of one's own: ``transformer/data/NAME`` on the path is found here."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
