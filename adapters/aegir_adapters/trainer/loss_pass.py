"""Following a GRPO trainer: which forward is the loss pass, and whose tokens it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from aegir_adapters.trainer.generation import Generation, Scored, weighted_sum
from aegir_adapters.trainer.tokens import completion_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from aegir_adapters.trainer.capture import Capture, CapturedPass

__all__ = ["LossPass", "PassReceiver"]

_ID = "aegir_completion"
_MASK = "aegir_completion_mask"


class PassReceiver(Protocol):
    """Who gets what a pass captured."""

    def pass_captured(self, captured: CapturedPass) -> None:
        """Take what the hooked layers gave during one forward."""
        ...

    def completions_trained(self, generation: Generation, ids: Tensor, *, step: int) -> None:
        """Take note that these completions were trained on for the first time."""
        ...


class LossPass:
    """Arms a capture for the first loss pass over every completion (see `Listener`).

    The trainer shuffles and splits its generation batch, all keys in unison. Two keys of ours
    travel with it: the completion ids, and a copy of the completion mask on the CPU, so that
    finding the completion tokens waits for no device.

    Args:
        trainer: the GRPO trainer.
        capture: what is armed.
        receiver: who gets what was read.
    """

    def __init__(self, trainer: Any, capture: Capture, *, receiver: PassReceiver) -> None:
        self._trainer = trainer
        self._capture = capture
        self._receiver = receiver
        self._call: Mapping[str, Any] = {}
        self._scored: Scored | None = None
        self._generation: Generation | None = None
        self._ids: Tensor | None = None
        self._step = -1
        self._ids_in_use = 0

    # -- rewards and generation --------------------------------------------------------------------

    def rewards_begin(self, call: Mapping[str, Any]) -> None:
        """Remember which completions are about to be judged."""
        self._call = call

    def rewards_end(self, result: Any) -> None:
        """Keep the rewards with the completions that earned them."""
        call, self._call = self._call, {}
        if result is not None and self._trainer.model.training:
            self._scored = Scored(
                token_ids=call["completion_ids_list"],
                completions=call["completions"],
                rewards=result.detach().float().cpu(),
            )

    def generation_begin(self, call: Mapping[str, Any]) -> None:  # noqa: ARG002 - Listener's signature
        """Take note that forwards from here on generate."""
        self._capture.phase = "generation"
        self._scored = None
        if self._trainer.model.training:
            self._generation = None

    def generation_end(self, result: Any) -> None:
        """Give every completion an id that travels with it through the trainer's shuffle."""
        self._capture.phase = "other"
        scored, self._scored = self._scored, None
        if result is None or scored is None:
            return
        generation = self._generation_of(scored, result)
        mask = result["completion_mask"].bool().cpu()
        result.update({_ID: generation.ids(), _MASK: mask})
        self._generation = generation

    def _generation_of(self, scored: Scored, output: Mapping[str, Any]) -> Generation:
        trainer = self._trainer
        self._enter_step()
        accumulation = trainer.args.gradient_accumulation_steps
        return Generation(
            base=self._ids_in_use,
            rank=trainer.args.process_index,
            group_size=trainer.num_generations,
            names=tuple(trainer.reward_func_names),
            scored=scored,
            totals=weighted_sum(scored.rewards, trainer.reward_weights.float().cpu()),
            advantages=output["advantages"],
            prompt_ids=output["prompt_ids"],
            prompt_mask=output["prompt_mask"],
            end_ids=_end_ids(trainer),
            whole=accumulation % trainer.args.steps_per_generation == 0,
        )

    # -- the loss ----------------------------------------------------------------------------------

    def loss_begin(self, call: Mapping[str, Any]) -> None:
        """Arm the capture if these completions are trained on for the first time."""
        trainer = self._trainer
        if not trainer.model.training:
            self._capture.phase = "eval"
            return
        slices = trainer.args.steps_per_generation
        if trainer._step % (slices * trainer.num_iterations) >= slices:  # noqa: SLF001 - not public
            self._capture.phase = "repeated loss"
            return
        self._capture.phase = "loss"
        self._enter_step()
        inputs = call["inputs"]
        self._ids = inputs.get(_ID)
        tokens = completion_tokens(
            _mask_of(inputs), offset=inputs["prompt_ids"].shape[1], completion=self._ids
        )
        self._capture.arm(tokens, step=self._step)

    def loss_end(self, result: Any) -> None:
        """Disarm, so that a recomputation during backward is not read, and hand over."""
        self._capture.phase = "other"
        captured = self._capture.disarm()
        ids, self._ids = self._ids, None
        if result is None:
            return
        if self._generation is not None and ids is not None:
            self._ids_in_use = max(self._ids_in_use, self._generation.end)
            self._receiver.completions_trained(self._generation, ids, step=self._step)
        if captured is not None:
            self._receiver.pass_captured(captured)

    def _enter_step(self) -> None:
        """Begin to count ids anew with each optimizer step.

        A generation that starts in a step which still trained on the one before counts on from
        its ids, so that an id is unique within every step.
        """
        step = self._trainer.state.global_step + 1
        if step != self._step:
            self._step, self._ids_in_use = step, 0


def _mask_of(inputs: Mapping[str, Any]) -> Tensor:
    mask: Tensor = inputs["completion_mask"]
    ours = inputs.get(_MASK)
    return ours if isinstance(ours, torch.Tensor) and ours.shape == mask.shape else mask


def _end_ids(trainer: Any) -> frozenset[int]:
    known: Iterable[int] | None = getattr(trainer, "eos_token_ids", None)
    if known is None:
        single = getattr(trainer.processing_class, "eos_token_id", None)
        known = [] if single is None else [single]
    return frozenset(known)
