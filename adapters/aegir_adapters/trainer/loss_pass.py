"""Following a GRPO trainer: which forward is which pass, and whose tokens it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from aegir_adapters.trainer.generation import Generation, Scored, weighted_sum
from aegir_adapters.trainer.generation_passes import GenerationPasses
from aegir_adapters.trainer.step_ids import StepIds
from aegir_adapters.trainer.tokens import completion_tokens
from aegir_adapters.trainer.transfer import fetched, to_host

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from aegir_adapters.trainer.capture import Capture, CapturedPass
    from aegir_adapters.trainer.options import Iterations
    from aegir_adapters.trainer.tokens import Tokens
    from aegir_stream.events import PassName

__all__ = ["LossPass", "PassReceiver"]

_ID = "aegir_completion"
_MASK = "aegir_completion_mask"
_RECORDED = "aegir_recorded_mask"

_READ = ("completion_mask", "tool_mask", "advantages", "prompt_ids", "prompt_mask")
"""What of a generation batch is read on the CPU."""

_HELD_BYTES = 128 << 20


class PassReceiver(Protocol):
    """Who gets what a pass captured."""

    def pass_captured(self, captured: CapturedPass) -> None:
        """Take what the hooked layers gave during one forward."""
        ...

    def pass_cut(self, name: PassName, tokens: int, *, step: int) -> None:
        """Take note that so many tokens of a pass were not read, for want of memory."""
        ...

    def completions_trained(
        self, generation: Generation, ids: Tensor, *, step: int, iteration: int = 0
    ) -> None:
        """Take note that these completions were trained on, for the how manieth time."""
        ...

    def completions_seen(
        self, generation: Generation, ids: Tensor, *, step: int, pass_: PassName
    ) -> None:
        """Take note that a step has records of completions, but does not train on them."""
        ...


class LossPass:
    """Arms a capture for the passes that are asked for (see `Listener`).

    The trainer shuffles and splits its generation batch, all keys in unison. Keys of ours travel
    with it: the completion ids, and copies of the masks on the CPU, so that finding the completion
    tokens waits for no device.

    Args:
        trainer: the GRPO trainer.
        capture: what is armed.
        receiver: who gets what was read.
        passes: names of the passes that are recorded.
        iterations: whether repeated loss passes over a completion are recorded.
        held_bytes: bound on the device memory that is held between a generation's two ends.
    """

    def __init__(
        self,
        trainer: Any,
        capture: Capture,
        *,
        receiver: PassReceiver,
        passes: Iterable[PassName] = ("loss",),
        iterations: Iterations = "first",
        held_bytes: int = _HELD_BYTES,
    ) -> None:
        self._trainer = trainer
        self._capture = capture
        self._receiver = receiver
        self._asked = frozenset(passes)
        self._iterations = iterations
        self._passes = GenerationPasses(trainer, capture, asked=self._asked, limit_bytes=held_bytes)
        self._call: Mapping[str, Any] = {}
        self._scored: Scored | None = None
        self._generation: Generation | None = None
        self._evaluated: Generation | None = None
        self._ids: Tensor | None = None
        self._iteration = 0
        self._trained: dict[int, int] = {}
        self._untrained: tuple[PassName, set[int]] | None = None
        self._train_ids, self._eval_ids = StepIds(), StepIds()
        self._behind = self._place() != 0
        self._missed: int | None = None

    # -- rewards and generation --------------------------------------------------------------------

    def rewards_begin(self, call: Mapping[str, Any]) -> None:
        """Remember which completions are about to be judged."""
        self._call = call

    def rewards_end(self, result: Any) -> None:
        """Keep the rewards with the completions that earned them."""
        call, self._call = self._call, {}
        if result is not None and (self._training or "eval" in self._asked):
            self._scored = Scored(
                token_ids=call["completion_ids_list"],
                completions=call["completions"],
                # There when the generation ends, which waits for what it brings.
                rewards=to_host(result.float()),
            )

    def generation_begin(self, call: Mapping[str, Any]) -> None:
        """Take note that forwards from here on generate."""
        self._capture.phase = "generation"
        self._scored = None
        if self._training:
            self._generation = None
            self._trained.clear()
            self._passes.abandon()
            if self._passes.wanted:
                ids, size = self._enter_step(), len(call["inputs"])
                first = ids.next + self._trainer.args.process_index * size
                self._passes.begin(torch.arange(first, first + size), step=ids.step)

    def generation_end(self, result: Any) -> None:
        """Give every completion an id that travels with it through the trainer's shuffle."""
        self._capture.phase = "other"
        scored, self._scored = self._scored, None
        if result is None or scored is None:
            self._passes.abandon()
            return
        # The trainer itself has just read rewards and advantages from the device, value by value:
        # nothing is left to wait for but these copies.
        names = [name for name in _READ if name in result]
        host = fetched(**{name: result[name] for name in names})
        generation = self._generation_of(scored, host)
        mask = recorded = host["completion_mask"].bool()
        result.update({_ID: generation.ids(), _MASK: mask})
        if "tool_mask" in host:  # what tools and environments wrote is no choice of the model's
            recorded = result[_RECORDED] = mask & host["tool_mask"].bool()
        if not self._training:
            self._evaluated = generation
            return
        self._generation = generation
        if self._passes.wanted:
            self._hand_over(generation, recorded)

    def _generation_of(self, scored: Scored, output: Mapping[str, Any]) -> Generation:
        trainer, training = self._trainer, self._training
        ids = self._enter_step()
        accumulation = trainer.args.gradient_accumulation_steps
        group_size = trainer.num_generations
        if not training:
            group_size = getattr(trainer, "num_generations_eval", group_size)
        return Generation(
            base=ids.next,
            rank=trainer.args.process_index,
            group_size=group_size,
            names=tuple(trainer.reward_func_names),
            scored=scored,
            totals=weighted_sum(scored.rewards, trainer.reward_weights.float().cpu()),
            advantages=output["advantages"],
            prompt_ids=output["prompt_ids"],
            prompt_mask=output["prompt_mask"],
            end_ids=_end_ids(trainer),
            whole=not training or accumulation % trainer.args.steps_per_generation == 0,
        )

    def _hand_over(self, generation: Generation, recorded: Tensor) -> None:
        step, left_out = self._train_ids.step, self._passes.left_out()
        passes = self._passes.end(generation.scored.token_ids, recorded)
        if passes:
            self._untrained = passes[0].pass_, set(generation.ids().tolist())
        for captured in passes:
            self._receiver.pass_captured(captured)
        for name, tokens in left_out.items():
            self._receiver.pass_cut(name, tokens, step=step)

    # -- the forwards of a generation --------------------------------------------------------------

    def turn_begin(self, call: Mapping[str, Any]) -> None:
        """Read what is generated, if that is asked for."""
        self._passes.turn_begin(call)

    def turn_end(self, result: Any) -> None:
        """Stop reading."""
        self._passes.turn_end(result)

    def scoring_begin(self, call: Mapping[str, Any]) -> None:
        """Read old or reference log-probabilities, if that is asked for."""
        self._passes.scoring_begin(call)

    def scoring_end(self, result: Any) -> None:
        """Stop reading."""
        self._passes.scoring_end(result)

    # -- the loss ----------------------------------------------------------------------------------

    def loss_begin(self, call: Mapping[str, Any]) -> None:
        """Arm the capture if this loss pass is to be recorded."""
        if not self._training:
            self._capture.phase = "eval"
            self._arm(call, "eval")
        elif self._is_missed():
            self._capture.phase = "loss before recording"
        elif self._repeats():
            self._capture.phase = "repeated loss"
        else:
            self._capture.phase = "loss"
            self._arm(call, "loss")

    def loss_end(self, result: Any) -> None:
        """Disarm, so that a recomputation during backward is not read, and hand over."""
        self._capture.phase = "other"
        captured = self._capture.disarm()
        ids, self._ids = self._ids, None
        if result is None:
            return
        if ids is not None:
            self._describe(ids)
        if captured is not None:
            self._receiver.pass_captured(captured)

    def step_end(self) -> None:
        """Describe completions that a step has records of, but did not train on."""
        if self._untrained is not None and self._generation is not None:
            name, left = self._untrained
            if left:
                ids, step = torch.tensor(sorted(left)), self._train_ids.step
                self._receiver.completions_seen(self._generation, ids, step=step, pass_=name)
        self._untrained = None

    def _is_missed(self) -> bool:
        """Tell whether this pass belongs to a step that was not seen from its generation on.

        So it may be where a trainer is followed while it trains. What it generated before has no
        ids, and a part of a step would pass for all of it.
        """
        step = self._enter_step().step
        self._behind = self._behind and self._place() != 0
        if self._behind:
            self._missed = step
        return step == self._missed

    def _place(self) -> int:
        """Return how many passes over the present generation were made."""
        trainer = self._trainer
        passes = trainer.args.steps_per_generation * trainer.num_iterations
        return int(trainer._step % passes)  # noqa: SLF001 - there is no public name

    def _repeats(self) -> bool:
        """Tell whether this pass is one over completions that are recorded already.

        That is, one of a later iteration; if all are asked for, one within the same step, whose
        policy is the same.
        """
        slices = self._trainer.args.steps_per_generation
        turn, place = divmod(self._trainer._step, slices)  # noqa: SLF001 - there is no public name
        self._iteration = turn % self._trainer.num_iterations
        step = self._enter_step().step
        if self._iteration and (self._iterations == "first" or self._trained.get(place) == step):
            return True
        self._trained[place] = step
        return False

    def _arm(self, call: Mapping[str, Any], name: PassName) -> None:
        if name == "eval" and name not in self._asked:
            return
        inputs, step = call["inputs"], self._enter_step().step
        self._ids = inputs.get(_ID)
        if name in self._asked:
            self._capture.arm(_tokens_of(inputs, self._ids), step=step, pass_=name)

    def _describe(self, ids: Tensor) -> None:
        """Hand over the completions of the pass that ends."""
        step_ids = self._train_ids if self._training else self._eval_ids
        generation = self._generation if self._training else self._evaluated
        if generation is None:
            return
        step_ids.use(generation.end)
        if not self._training:
            self._receiver.completions_seen(generation, ids, step=step_ids.step, pass_="eval")
            return
        if self._untrained is not None:
            self._untrained[1].difference_update(ids.tolist())
        self._receiver.completions_trained(
            generation, ids, step=step_ids.step, iteration=self._iteration
        )

    @property
    def _training(self) -> bool:
        return bool(self._trainer.model.training)

    def _enter_step(self) -> StepIds:
        """Return the ids of the step that runs; in an evaluation, of the one before it."""
        ids = self._train_ids if self._training else self._eval_ids
        ids.enter(self._trainer.state.global_step + int(self._training))
        return ids


def _tokens_of(inputs: Mapping[str, Any], ids: Tensor | None) -> Tokens:
    mask: Tensor = inputs["completion_mask"]
    ours, recorded = inputs.get(_MASK), inputs.get(_RECORDED)
    if ours is None or ours.shape != mask.shape:
        # The keys of ours did not come through: another trainer made the batch.
        ours, recorded = mask, inputs.get("tool_mask")
    return completion_tokens(
        ours, offset=inputs["prompt_ids"].shape[1], completion=ids, recorded=recorded
    )


def _end_ids(trainer: Any) -> frozenset[int]:
    known: Iterable[int] | None = getattr(trainer, "eos_token_ids", None)
    if known is None:
        single = getattr(trainer.processing_class, "eos_token_id", None)
        known = [] if single is None else [single]
    return frozenset(known)
