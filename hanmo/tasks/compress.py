"""Compression: a network of fewer blocks, distillation from a trained one, and BERT-of-Theseus.

teacher = hanmo.load("run")
student = fewer_blocks(teacher, 3)
fit(student, …, out="theseus", wrap=Theseus(teacher))      train the blocks in place of the teacher's
fit("theseus", …, out="small")                             train them together
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hanmo.errors import ConfigError
from hanmo.generate.rules import check_number
from hanmo.model import Model
from hanmo.model_pipeline import ModelPipeline
from hanmo.tasks.divergence import divergence
from hanmo.tasks.pipeline import TaskPipeline, open_task
from hanmo.tasks.steps import StepWrapper, observed, predicted
from hanmo.tasks.task import Batch, TaskNetwork, weighted_mean
from hanmo.training import distributed
from hanmo.training.args import TrainArgs
from hanmo.training.step import Loss


def fewer_blocks(loaded: ModelPipeline, blocks: int | Sequence[int]) -> ModelPipeline:
    """Return a model of some of the blocks of another, with which it shares its weights.

    blocks: how many from the first, or their numbers from 0.
    Raises ConfigError for blocks that the model does not have.
    """
    numbers = list(range(blocks)) if isinstance(blocks, int) else list(blocks)
    main = loaded.config.main
    if not numbers or not set(numbers) <= set(range(main.num_layers)):
        raise ConfigError(f"blocks is {blocks}; expected some of the model's {main.num_layers}, counted from 0")
    if loaded.config.is_encoder_decoder:
        raise ConfigError(f"this {loaded.config.family} has two stacks; expected an encoder alone")
    stack = "decoder" if loaded.config.decoder is not None else "encoder"
    smaller = replace(main, num_layers=len(numbers))
    config = replace(loaded.config, **{stack: smaller})  # type: ignore[arg-type]
    with torch.device("meta"):
        model = Model(config)
    state, chosen = loaded.model.state_dict(), {}
    for name in model.state_dict():
        before, found, rest = name.partition(".blocks.")
        if found and not main.shared_layers:
            own, _, parameter = rest.partition(".")
            chosen[name] = state[f"{before}.blocks.{numbers[int(own)]}.{parameter}"]
        else:
            chosen[name] = state[name]
    model.load_state_dict(chosen, assign=True)
    return ModelPipeline(config, model.eval(), loaded.tokenizer, loaded.report, loaded.path)


class Distill(StepWrapper):
    """Learn from the probabilities of a trained teacher (Hinton et al., arXiv 1503.02531).

    (1 - weight) · loss + weight · temperature² · KL(teacher ‖ student), both at `temperature`.
    teacher: a folder of the same task, with the same vocabulary, or what `hanmo.load` gives for it.
    """

    def __init__(self, teacher: str | Path | TaskPipeline, *, temperature: float = 2.0, weight: float = 0.5) -> None:
        check_number("temperature", temperature, above=0)
        check_number("weight", weight, above=0, most=1)
        self.teacher, self.temperature, self.weight = _teacher(teacher), temperature, weight

    def __call__(self, loss: Loss, network: TaskNetwork) -> Loss:
        task, teacher = network.task, _like(self.teacher, network)

        def distilled(network: TaskNetwork, batch: Batch) -> Tensor:
            plain, outputs = observed(loss, network, batch)
            target, found = teacher.task.logits(predicted(teacher, batch), batch), task.logits(outputs, batch)
            theirs, ours = ([tuple(each.values.shape) for each in side] for side in (target, found))
            if theirs != ours:
                raise ConfigError(
                    f"the outputs of the teacher {self.teacher.path} are {theirs}, the student's {ours}; give both the "
                    "same head and size of vectors"
                )
            apart = divergence(found, target, temperature=self.temperature)
            apart = self.temperature**2 * weighted_mean(apart, batch["weight"])
            return (1 - self.weight) * plain + self.weight * apart

        return distilled


class Theseus(StepWrapper):
    """Train blocks in the place of groups of a teacher's blocks (BERT-of-Theseus, arXiv 2002.02925).

    In each pass the embeddings and every block are the student's with probability `rate`, and otherwise those of the
    teacher that it replaces. Teacher and head do not change; the head is the teacher's. Predictions are the student's.
    """

    def __init__(self, teacher: str | Path | TaskPipeline, *, rate: float = 0.5) -> None:
        check_number("rate", rate, above=0, most=1)
        self.teacher, self.rate = _teacher(teacher), rate

    def check(self, args: TrainArgs) -> None:
        distributed.check_single("Theseus")

    def __call__(self, loss: Loss, network: TaskNetwork) -> Loss:
        teacher = _like(self.teacher, network, "head", "pooling").requires_grad_(False).train()
        ours, theirs = network.backbone.main, teacher.backbone.main
        count, own = theirs.config.num_layers, ours.config.num_layers
        same = replace(theirs.config, num_layers=own) == ours.config
        if not same or count % own or ours.config.shared_layers:
            raise ConfigError(
                f"the student has {own} blocks and the teacher {count}; expected equal sizes but for the number of "
                "blocks, which divides the teacher's, and blocks that share no weights; see fewer_blocks"
            )
        _take_over(network.head, teacher.head)
        if network.backbone.pooler is not None and teacher.backbone.pooler is not None:
            _take_over(network.backbone.pooler, teacher.backbone.pooler)
        self._replace_embeddings(network.backbone, teacher.backbone)
        size = count // own
        for number, block in enumerate(ours.blocks):
            self._replace_block(block, list(theirs.blocks[number * size : (number + 1) * size]))
        return loss

    def _teachers(self, module: nn.Module) -> bool:
        """Draw whether the teacher computes in place of a module of the student."""
        return module.training and float(torch.rand(())) >= self.rate

    def _replace_embeddings(self, student: Model, teacher: Model) -> None:
        vectors: list[Tensor] = []

        def look_up(module: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> None:
            vectors[:] = [teacher.vectors(teacher.main, given[0], options.get("segments"))] if module.training else []

        def embed(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
            if not self._teachers(module):
                return output
            return _instead(output, teacher.main.embedding(*vectors, *given[1:]))

        student.register_forward_pre_hook(look_up, with_kwargs=True)
        student.main.embedding.register_forward_hook(embed)

    def _replace_block(self, block: nn.Module, group: Sequence[nn.Module]) -> None:
        def run(module: nn.Module, given: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
            if not self._teachers(module):
                return output
            x, scores = given[0], options["scores"]
            for each in group:
                x, scores = each(x, *given[1:], **options | {"scores": scores})
            return _instead(output[0], x), scores

        block.register_forward_hook(run, with_kwargs=True)


def _instead(output: Tensor, teachers: Tensor) -> Tensor:
    """Return the teacher's output; the student's has a gradient of 0, so that an optimizer goes on as in Keras."""
    return teachers + 0 * output


def _take_over(own: nn.Module, teacher: nn.Module) -> None:
    own.load_state_dict(teacher.state_dict())
    own.requires_grad_(False)


def _teacher(given: str | Path | TaskPipeline) -> TaskPipeline:
    return given if isinstance(given, TaskPipeline) else open_task(given)


def _like(teacher: TaskPipeline, network: TaskNetwork, *same: str) -> TaskNetwork:
    """Return a copy of the teacher's network on the student's device. Raises ConfigError if it is of another task.

    same: fields of the task that must be equal, too.
    """
    own, other = network.task.config, teacher.task.config
    for name in ("kind", "form", "labels", *same):
        if getattr(own, name) != getattr(other, name):
            raise ConfigError(
                f"{name} of the teacher {teacher.path} is {getattr(other, name)}; "
                f"expected the student's {getattr(own, name)}"
            )
    if teacher.config.vocab_size != network.backbone.config.vocab_size:
        raise ConfigError(
            f"the teacher {teacher.path} has {teacher.config.vocab_size} tokens; "
            f"expected the student's vocabulary of {network.backbone.config.vocab_size}"
        )
    copied = TaskNetwork(deepcopy(teacher.network.backbone), deepcopy(teacher.network.head), teacher.task)
    return copied.to(network.backbone.token.weight.device)
