# SPDX-License-Identifier: Apache-2.0
"""A server of text: many requests at a time over one model, by OpenAI's and Megatron's forms.

``batch`` lets requests join and leave between the steps of a model; ``loop`` has all ranks of a
layout do the same steps; ``openai_forms`` and ``megatron_forms`` read requests and write answers;
``app`` is the web server's side; ``command`` the command line. See docs/serving.md.
"""
