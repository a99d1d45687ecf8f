"""The rewards behind a Triton Inference Server: a model repository around the same models."""

from rewardzoo.services.triton.export import Options, export

__all__ = ["Options", "export"]
