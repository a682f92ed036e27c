"""Processes that see each other as torchrun's do, without its starts: forked, everything is imported already."""

import os
import pathlib
import socket
import time
import warnings
from contextlib import contextmanager

import torch
from torch import multiprocessing

HERE = pathlib.Path(__file__).parent


def launched(function, *arguments, count=2, patience=600):
    """Call the function in so many processes of their own; one that fails, is killed or waits too long is an error.

    Where CUDA is in use, which no fork survives, they are started anew: the function must be one of a module then.
    A forked process in which C code gives up (seen once: "malloc(): unaligned tcache chunk") gets a second chance.
    """
    try:
        _launched(function, arguments, count, patience)
    except multiprocessing.ProcessExitedException as error:
        if error.signal_name not in ("SIGABRT", "SIGSEGV"):
            raise
        _launched(function, arguments, count, patience)


def _launched(function, arguments, count, patience):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    given = (function, arguments, count, port)
    with _unwarned():
        group = multiprocessing.start_processes(_ranked, given, nprocs=count, start_method=_method(), join=False)
    end = time.monotonic() + patience
    while not group.join(timeout=1):
        if time.monotonic() > end:
            for process in group.processes:
                process.kill()
            raise TimeoutError(f"processes still ran after {patience} s")


def forked(function, *arguments):
    """Start the function in a process of its own and return that."""
    process = multiprocessing.get_context(_method()).Process(target=_ranked, args=(0, function, arguments, 1, 0))
    with _unwarned():
        process.start()
    return process


def torchrun(*words, told):
    """Run a module by torchrun, in two interpreters, write what they print, and return it; an error is one here."""
    told.touch()
    try:
        launched(_torchrun, [str(word) for word in words], told, count=1)
    except multiprocessing.ProcessExitedException as error:
        raise AssertionError(told.read_text()[-3000:]) from error
    return told.read_text()


def _torchrun(words, told):
    from torch.distributed import run

    with told.open("w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    paths = f"{HERE}{os.pathsep}{HERE.parent}"
    os.environ |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    run.main(["--standalone", "--nproc-per-node=2", "-m", *words])


def _method():
    return "spawn" if torch.cuda.is_initialized() else "fork"


@contextmanager
def _unwarned():
    """Python 3.12 and later warn of forks where there are threads: here they wait for work and hold no lock."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        yield


def _ranked(rank, function, arguments, count, port):
    torch.set_num_threads(1)  # the pool of threads did not come along
    if count > 1:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in own.items()}
    function(*arguments)
