"""TensorRT for RTX on the stand-in GPU: what `tensorrt.py` is, in the version of the parser and builder that it has."""

from tensorrt import *  # noqa: F403
from tensorrt import rtx

__version__ = rtx.__version__
