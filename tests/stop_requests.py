"""A signal that comes while an endpoint is asked."""

import os
import signal
import threading
import time


class Stopping:
    """A reply for TinyEndpoint: answers `count` requests as `reply` does, sends SIGTERM with the next one, and lets it
    and all later ones hang. `seconds()`: how long ago the signal was sent."""

    def __init__(self, reply, count: int):
        self.reply, self.left, self.sent = reply, count, 0.0
        self.released, self._lock = threading.Event(), threading.Lock()

    def __call__(self, body):
        with self._lock:
            self.left -= 1
            left = self.left
        if left >= 0:
            return self.reply(body)
        if left == -1:
            time.sleep(0.5)  # the answers before this one arrive
            self.sent = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
        self.released.wait(30)
        return self.reply(body)

    def seconds(self) -> float:
        self.released.set()
        return time.monotonic() - self.sent
