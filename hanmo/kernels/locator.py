"""What a module of kernels needs of Numba: functions that are compiled when it is imported by `hanmo.kernels.cache`."""

from numba import njit
from numba.core.caching import InTreeCacheLocator


class Locator(InTreeCacheLocator):
    """Tells Numba where compiled functions are kept: in `folder`, which may be read-only.   None: nowhere."""

    folder: str | None = None

    def get_cache_path(self):
        """Give the folder."""
        return self.folder

    def ensure_cache_path(self):
        """Leave it as it is; cache.py makes it."""


def kernel(signatures, **options):
    """Compile a function for these signatures when its module is imported, or read what was compiled before.

    options: as for `numba.njit`.
    """
    return njit(signatures, cache=Locator.folder is not None, **options)
