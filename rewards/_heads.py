"""The regression head that ImageReward took over from LAION's aesthetic predictor."""

from __future__ import annotations

from torch import Tensor, nn


class LinearHead(nn.Module):
    """Five linear layers with dropout and no activation between them, named as upstream's checkpoints do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, width) -> (B, 1)."""
        out: Tensor = self.layers(hidden)
        return out
