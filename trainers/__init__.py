"""Training image generators on rewards, and the lab in which all of it is proven offline."""

from __future__ import annotations

from rewardzoo._torchvision import install as _install

_install()
