# SPDX-License-Identifier: Apache-2.0
"""From the keys of the toolkit and of MindFormers to the sections of our configuration.

Pure functions: no MindSpore, no process state. Every key is mapped, named in one line as without
effect, or refused; an unknown key is an error with the nearest name.
"""
