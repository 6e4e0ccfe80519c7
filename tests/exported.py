"""The tensors of a model under the names of another format, as `save` writes them."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from hanmo.checkpoint.names import export_row, rows_of
from hanmo.families import Row


def exported(state: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, Tensor]:
    """Return the foreign tensors that the rows make of our parameters."""
    return {row.theirs: export_row(row, [state[name].detach() for name in row.ours]) for row in rows_of(state, rows)}
