# SPDX-License-Identifier: Apache-2.0
"""The report of one or several runs: one HTML file that needs no network.

``story`` gathers what the records of runs tell, ``page`` puts it into ``page.html``; curves are
drawn by plotly's own library, which the file carries.
"""
