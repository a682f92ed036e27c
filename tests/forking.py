"""What the notebook on scaling takes for `subprocess`: ``python -m`` and torchrun, in forks of this process."""

import contextlib
import importlib
import tempfile
from types import SimpleNamespace

from ranks import forked, launched

DEVNULL = None


def run(command, **_):
    """Run a command, with torchrun in two processes, and return what it printed."""
    with tempfile.NamedTemporaryFile("r") as told:
        launched(_main, command, told.name, count=2 if "torch.distributed.run" in command else 1)
        return SimpleNamespace(stdout=told.read())


class Popen:
    """A command that is running."""

    def __init__(self, command, **_):
        self.process = forked(_main, command, "/dev/null")
        self.kill = self.process.kill

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.process.exitcode


def _main(command, told):
    command = [str(word) for word in command]
    words = command[len(command) - command[::-1].index("-m") :]
    with open(told, "a") as file, contextlib.redirect_stdout(file):
        importlib.import_module(f"{words[0]}.__main__").main(words[1:])
