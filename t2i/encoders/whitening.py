"""The affine map that whitens a text encoder's states, and its file; measured by `text_whitening`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FILE_NAME = "text_whitening.safetensors"


@dataclass(frozen=True)
class TextWhitening:
    """An affine map of states: mean_D and the symmetric matrix_DD, float32."""

    mean_D: Tensor
    matrix_DD: Tensor

    def __call__(self, states_BLD: Tensor) -> Tensor:
        """(states - mean) @ matrix in float32, whatever the dtype of the states."""
        device = states_BLD.device
        centred_BLD = states_BLD.float() - self.mean_D.to(device)
        return centred_BLD @ self.matrix_DD.to(device)

    def save(self, folder: Path) -> None:
        """Write the file into a model's folder."""
        from safetensors.torch import save_file

        save_file({"mean": self.mean_D, "matrix": self.matrix_DD}, folder / FILE_NAME)
        (folder / FILE_NAME).chmod(0o644)  # safetensors makes it readable by its owner alone


def load_whitening(path: str) -> TextWhitening | None:
    """The whitening in the folder ``path``; None when there is none (or ``path`` is a hub name)."""
    from safetensors.torch import load_file

    file = Path(path) / FILE_NAME
    if not file.is_file():
        return None
    tensors = load_file(file)
    return TextWhitening(tensors["mean"], tensors["matrix"])
