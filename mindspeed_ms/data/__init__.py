# SPDX-License-Identifier: Apache-2.0
"""From token files on disk to micro-batches of numpy arrays.

``indexed_dataset`` (.bin/.idx) -> ``gpt_indices`` (which tokens form sample i) -> ``gpt_dataset``
(sample i as arrays) -> ``blended_dataset`` (several corpora) -> ``samplers`` (which samples this
data-parallel rank reads) -> ``loader`` (stacked micro-batches, read ahead).

Nothing here imports MindSpore or communicates: a rank is told who it is and gets numpy arrays.
"""
