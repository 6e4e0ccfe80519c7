"""The name that `hanmo.training` had in version 0.1; kept for one version."""

import sys
from importlib import import_module

sys.modules[__name__] = import_module("hanmo.training")
