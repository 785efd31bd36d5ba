"""What a GPU would be asked to do, seen without one: see driver.py."""

from .driver import MULTIPROCESSORS, FakeDriver, Variant, fake_cuda

__all__ = ["MULTIPROCESSORS", "FakeDriver", "Variant", "fake_cuda"]
