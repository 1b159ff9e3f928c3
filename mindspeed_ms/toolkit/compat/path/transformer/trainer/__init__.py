# SPDX-License-Identifier: Apache-2.0
"""The toolkit's command and what it is made of."""
