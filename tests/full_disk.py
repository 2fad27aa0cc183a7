"""A disk without room, as a limit to the files of this process."""

import resource
from contextlib import contextmanager


@contextmanager
def room_for(size):
    """Files of this process may grow to so many bytes: the system takes a part of a write, then refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
