"""AdaFactor's moments as the released gpt2-ml checkpoints store them, into an optimizer and out of it.

Knows slot names and orientation; knows no file: readers of checkpoints give arrays. A checkpoint holds for a kernel
NAME `NAME/adafactor_vr`, the mean over its columns (one number a row), and `NAME/adafactor_vc`, the mean over its rows;
for a vector `NAME/adafactor_v`. Its kernels lie [in, out] where a Linear's weight is [out, in]: such names go in
`transposed`.
"""

from collections.abc import Collection, Mapping

from torch import Tensor

from hanmo.errors import TensorMismatch
from hanmo.training.distributed import is_sharded
from hanmo.training.optim.adafactor import AdaFactor

__all__ = ["Slots", "load_slots", "save_slots"]

Slots = dict[str, dict[str, Tensor]]


def load_slots(
    optimizer: AdaFactor,
    slots: Mapping[str, Mapping[str, Tensor]],
    *,
    parameters: Mapping[str, Tensor],
    transposed: Collection[str] = (),
    step: int = 0,
) -> None:
    """Put stored moments into an optimizer, for exactly the named parameters.

    slots: {name: {"vr": [rows], "vc": [columns]} or {"v": as the parameter}}, rows and columns of the foreign kernel.
    parameters: the same names, for example dict(model.named_parameters()).
    transposed: names stored the other way round.
    step: updates done before, `global_step` of a checkpoint; counts only if beta2 changes with the step.
    Raises TensorMismatch if names or shapes differ; nothing has been changed then.
    """
    _same_names(set(slots), set(parameters))
    ready = {}
    for name, parameter in parameters.items():
        state = optimizer.start(parameter)
        wanted = _keys(state, flipped=name in transposed)
        given = slots[name]
        expected = {slot: _shape(state[key], slot) for slot, key in wanted.items()}
        found = {slot: tuple(tensor.shape) for slot, tensor in given.items()}
        if found != expected:
            raise TensorMismatch(
                f"AdaFactor slots of {name} are {found}; expected {expected} for a parameter of shape "
                f"{tuple(parameter.shape)}; check `transposed`, or leave out names whose shape was changed"
            )
        ready[name] = {key: given[slot] for slot, key in wanted.items()}
    for name, moments in ready.items():
        state = optimizer.state[parameters[name]]
        state["step"] = step
        for key, tensor in moments.items():
            state[key].copy_(tensor.reshape(state[key].shape))


def save_slots(optimizer: AdaFactor, *, parameters: Mapping[str, Tensor], transposed: Collection[str] = ()) -> Slots:
    """Give an optimizer's moments as a checkpoint stores them; the inverse of `load_slots`.

    Raises TensorMismatch if a parameter is cut over processes: gather it first.
    """
    result: Slots = {}
    for name, parameter in parameters.items():
        if is_sharded(parameter):
            raise TensorMismatch(
                f"parameter {name} is cut over processes; expected a whole one; gather the model first"
            )
        state = optimizer.start(parameter)
        wanted = _keys(state, flipped=name in transposed)
        result[name] = {
            slot: state[key].detach().clone().reshape(_shape(state[key], slot)) for slot, key in wanted.items()
        }
    return result


def _keys(state: Mapping[str, object], *, flipped: bool) -> dict[str, str]:
    """Name our key of each slot."""
    if "v" in state:
        return {"v": "v"}
    return {"vr": "columns", "vc": "rows"} if flipped else {"vr": "rows", "vc": "columns"}


def _shape(moment: Tensor, slot: str) -> tuple[int, ...]:
    return tuple(moment.shape) if slot == "v" else (moment.numel(),)


def _same_names(slots: set[str], parameters: set[str]) -> None:
    missing, unexpected = sorted(parameters - slots), sorted(slots - parameters)
    if missing or unexpected:
        raise TensorMismatch(
            f"AdaFactor slots do not match the parameters: {len(missing)} without slots {missing[:3]}, "
            f"{len(unexpected)} slots without parameter {unexpected[:3]}; pass the same names on both sides"
        )
