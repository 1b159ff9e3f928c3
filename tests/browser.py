# SPDX-License-Identifier: Apache-2.0
"""A page in headless Chromium, read while it changes: the browser's own protocol over two pipes."""

from __future__ import annotations

import json
import os
import subprocess
import time


class Page:
    """One page of a browser that ends with the block.

    Args:
        browser: path of Chromium.
        folder: for its profile.
    """

    def __init__(self, browser, folder):
        self._words = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
        self._words += ["--remote-debugging-pipe", f"--user-data-dir={folder}"]
        self._number = 0

    def __enter__(self):
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()

        def place():
            copies = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(copies[0], 3)  # the browser reads its orders from 3 and answers on 4
            os.dup2(copies[1], 4)

        self._process = subprocess.Popen(
            self._words, preexec_fn=place, close_fds=False, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._answers = os.fdopen(self._in, "rb")
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        self._answers.close()

    def _ask(self, method, session=None, **params):
        self._number += 1
        order = {"id": self._number, "method": method, "params": params}
        order |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(order).encode() + b"\0")
        while True:
            letters = bytearray()
            while (letter := self._answers.read(1)) not in (b"\0", b""):
                letters += letter
            assert letters, "the browser has ended"
            answer = json.loads(letters)
            if answer.get("id") == self._number:
                return answer["result"]

    def shown(self, address, wanted, seconds=30):
        """The page of an address, as soon as a text is in it or the time is over."""
        target = self._ask("Target.createTarget", url=address)["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        end = time.monotonic() + seconds
        while True:
            script = {"expression": "document.documentElement.outerHTML"}
            text = self._ask("Runtime.evaluate", session, **script)["result"].get("value", "")
            if wanted in text or time.monotonic() > end:
                return text
            time.sleep(0.1)
