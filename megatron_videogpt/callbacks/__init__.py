"""What a run tells others of, and three that listen: `train.callbacks` names their classes by import path."""

from .base import Callback, Context
from .keep_best import KeepBest
from .profiler import Profiler
from .push_to_hub import PushToHub

__all__ = ["Callback", "Context", "KeepBest", "Profiler", "PushToHub"]
