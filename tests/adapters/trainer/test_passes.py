from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, get_args

import pytest
import torch
from transformers import Qwen3ForCausalLM
from trl.trainer.grpo_trainer import GRPOTrainer

from aegir_adapters.trainer import Precision, SidecarCallback, attempt, observe
from aegir_stream.errors import OptionError
from aegir_stream.events import Batch, Note, PassName

from .test_capture import assert_rewards_are_the_verifiers
from .tiny import LAYERS, TOP_K, Recorded, grpo_trainer, model, residuals, saes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aegir_stream.events import Completion, SAELogRecord

# TRL 1.16 asks transformers 5.23 for what the latter has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

PASSES: tuple[PassName, ...] = get_args(PassName)


def two_policies(path: Path) -> Qwen3ForCausalLM:
    """Return a policy whose reference, which the trainer loads from `path`, is another one."""
    model(seed=0).save_pretrained(path)
    policy = Qwen3ForCausalLM.from_pretrained(path)
    policy.load_state_dict(model(seed=1).state_dict())
    return policy


def recorded_run(path: Path, *, kind: Any = GRPOTrainer, passes: Any = PASSES, **args: Any) -> Any:
    """Train with a reference model of other weights, all passes recorded; return what was."""
    options = {name: args.pop(name) for name in ("iterations",) if name in args}
    policy = two_policies(path / "reference") if args.get("beta") else model(seed=1)
    trainer = grpo_trainer(path / "run", policy=policy, kind=kind, **args)
    callback = observe(
        trainer,
        sae=saes(),
        top_k=TOP_K,
        passes=passes,
        record_token_ids=True,
        precision=Precision.exact(),
        **options,
    )
    trainer.train()
    statistics = callback.statistics()
    assert (statistics.errors, statistics.records_dropped) == (0, 0), statistics.last_error
    return Recorded(path / "run")


Key = tuple[int, bool, int]


def key_of(event: Any) -> Key:
    """Return what joins a record with its completion."""
    assert event.completion is not None
    return event.step, event.pass_ == "eval", event.completion


def joined(recorded: Recorded) -> dict[Key, Completion]:
    """Return the completions by what joins them; each has one line, and the verifiers' rewards."""
    lines = recorded.completions
    by_key = {key_of(line): line for line in lines}
    assert len(by_key) == len(lines)
    assert_rewards_are_the_verifiers(lines)
    return by_key


def by_pass(recorded: Recorded, name: PassName) -> list[SAELogRecord]:
    """Return the records of a pass."""
    return [r for r in recorded.records if (r.pass_ or "loss") == name]


def assert_tokens(records: Sequence[SAELogRecord], expected: Mapping[Key, Sequence[int]]) -> None:
    """The records are these tokens of these completions, once at each layer."""
    seen = Counter((key_of(r), r.layer_index, r.token_index) for r in records)
    assert seen == Counter(
        (key, layer, index)
        for key, tokens in expected.items()
        for layer in LAYERS
        for index in tokens
    )


def assert_residuals(
    records: Sequence[SAELogRecord],
    completions: dict[Key, Completion],
    *,
    policy: Qwen3ForCausalLM,
) -> None:
    """What was recorded is what the sequence gives by itself, in a forward without padding."""
    by_key: dict[Key, list[SAELogRecord]] = {}
    for record in records:
        by_key.setdefault(key_of(record), []).append(record)
    for key, mine in by_key.items():
        c = completions[key]
        assert c.prompt_ids is not None
        assert c.token_ids is not None
        alone = residuals(policy, c.prompt_ids + c.token_ids)
        for layer, sae in saes().items():
            here = [r for r in mine if r.layer_index == layer]
            begins = [0 if r.pass_ == "prefill" else len(c.prompt_ids) for r in here]
            x = alone[layer][[b + r.token_index for b, r in zip(begins, here, strict=True)]]
            code, top = (x @ sae.w_enc + sae.b_enc).relu(), sae.top(x, k=TOP_K)
            activations = torch.tensor([r.top_feature_activations for r in here])
            chosen = torch.tensor([r.top_feature_indices for r in here])
            losses = torch.tensor([r.reconstruction_loss for r in here])
            torch.testing.assert_close(activations, top.activations, atol=1e-4, rtol=0)
            torch.testing.assert_close(activations, code.gather(1, chosen), atol=1e-4, rtol=0)
            torch.testing.assert_close(losses, top.reconstruction_loss, atol=0, rtol=1e-4)


def whole(completions: dict[Key, Completion], **drop: int) -> dict[Key, range]:
    """Return all tokens of each completion, the last few dropped."""
    return {key: range(c.length - drop.get("last", 0)) for key, c in completions.items()}


def test_each_pass_holds_each_token_once_under_its_own_policy(tmp_path: Path) -> None:
    """Generations for two steps, a reference model and an evaluation between: all six passes."""
    recorded = recorded_run(
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        max_steps=4,
        beta=0.04,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
        eval_strategy="steps",
        eval_steps=2,
        num_generations_eval=2,
    )
    lines = joined(recorded)
    trained = {key: c for key, c in lines.items() if c.pass_ is None}
    generated = {key: c for key, c in lines.items() if key[0] in (1, 3) and not key[1]}
    evaluated = {key: c for key, c in lines.items() if key[1]}
    assert Counter(step for step, *_ in trained) == {1: 8, 2: 8, 3: 8, 4: 8}
    assert Counter(step for step, *_ in generated) == {1: 16, 3: 16}
    assert Counter(step for step, *_ in evaluated) == {2: 16, 4: 16}
    assert all(
        c.group == c.completion // (2 if evaluated else 4) for (_, evaluated, _), c in lines.items()
    )

    assert_tokens(by_pass(recorded, "loss"), whole(trained))
    assert_tokens(by_pass(recorded, "logprob"), whole(generated))
    assert_tokens(by_pass(recorded, "reference"), whole(generated))
    assert_tokens(by_pass(recorded, "decode"), whole(generated, last=1))
    assert_tokens(by_pass(recorded, "eval"), whole(evaluated))
    prompts = {key: range(len(c.prompt_ids or ())) for key, c in generated.items()}
    assert {len(tokens) for tokens in prompts.values()} == {1, 2, 3, 4}
    assert_tokens(by_pass(recorded, "prefill"), prompts)

    policy, reference = model(seed=1), model(seed=0)
    for name in PASSES:
        assert_residuals(
            by_pass(recorded, name), lines, policy=reference if name == "reference" else policy
        )
    assert_batches_name_their_pass(recorded)


def assert_batches_name_their_pass(recorded: Recorded) -> None:
    """A batch's trailer says the same as each of its records."""
    counted = Counter[str | None]()
    for batch in recorded.control():
        if isinstance(batch, Batch):
            counted[batch.pass_] += batch.records
    assert counted == Counter(r.pass_ or "loss" for r in recorded.records)


def test_further_passes_change_nothing_of_the_loss_pass(tmp_path: Path) -> None:
    """Records, completions, rewards and health are those of a recording of the loss alone."""
    args: dict[str, Any] = {"num_iterations": 2, "eval_strategy": "steps", "eval_steps": 1}
    alone = recorded_run(tmp_path / "alone", passes=("loss",), **args)
    recorded = recorded_run(tmp_path / "all", **args)
    assert by_pass(recorded, "loss") == alone.records
    assert len(recorded.records) > 2 * len(alone.records)
    assert [c for c in recorded.completions if c.pass_ is None] == alone.completions
    for ours, theirs in zip(recorded.metrics, alone.metrics, strict=True):
        assert ours.health == theirs.health
        assert (ours.reward_mean, ours.length_mean) == (theirs.reward_mean, theirs.length_mean)


@pytest.mark.parametrize(
    ("accumulation", "iterations"), [(1, {1: 0, 2: 1, 3: 0, 4: 1}), (2, {1: 0, 2: 0, 3: 0, 4: 0})]
)
def test_all_iterations_are_recorded_if_asked_for(
    accumulation: int, iterations: dict[int, int], tmp_path: Path
) -> None:
    """Once in each step that trains on a completion; only the first iteration earns rewards."""
    recorded = recorded_run(
        tmp_path,
        passes=("loss", "logprob"),
        iterations="all",
        num_iterations=2,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=1,
        max_steps=4,
    )
    lines = joined(recorded)
    assert {step: c.iteration for (step, *_), c in lines.items()} == iterations
    assert Counter(step for step, *_ in lines) == dict.fromkeys(iterations, 8)
    assert_tokens(by_pass(recorded, "loss"), whole(lines))
    assert_residuals(by_pass(recorded, "loss"), lines, policy=model(seed=1))
    sampled = {key: c for key, c in lines.items() if accumulation == 1 and c.iteration == 0}
    assert_tokens(by_pass(recorded, "logprob"), whole(sampled))
    for metrics in recorded.metrics:
        assert (metrics.reward_mean is None) == (iterations[metrics.step] == 1)
        assert metrics.health


def test_masked_completions_are_generated_but_not_scored(tmp_path: Path) -> None:
    """A truncated completion that the loss leaves out has records of its generation only."""
    recorded = recorded_run(
        tmp_path,
        mask_truncated_completions=True,
        max_completion_length=3,
        num_iterations=2,
        beta=0.04,
        eval_strategy="steps",
        eval_steps=2,
    )
    lines = joined(recorded)
    assert {c.terminated for c in lines.values()} == {True, False}
    # The trainer takes a completion that ends in padding, of all tokens, for a finished one.
    unmasked = {key: c for key, c in lines.items() if c.token_ids and c.token_ids[-1] in (0, 1)}
    sampled = {key: c for key, c in lines.items() if not key[1]}
    ended = {key: c for key, c in unmasked.items() if not key[1]}
    evaluated = {key: c for key, c in unmasked.items() if key[1]}
    assert 0 < len(ended) < len(sampled)
    for name in ("loss", "logprob", "reference"):
        assert_tokens(by_pass(recorded, name), whole(ended))
    assert_tokens(by_pass(recorded, "eval"), whole(evaluated))
    assert_tokens(by_pass(recorded, "decode"), whole(sampled, last=1))


class ToolTrainer(GRPOTrainer):
    """Answers every second completion with two words, and lets the model go on, as a tool does."""

    def _generate(self, prompts: list[Any]) -> Any:
        """Generate, answer, generate again; remember which tokens were fed back."""
        prompt_ids, ids, _, *others = super()._generate(prompts)
        chosen = {i: tokens for i, tokens in enumerate(ids) if i % 2 == 0}
        given = [[*prompt_ids[i], *tokens, 5, 6] for i, tokens in chosen.items()]
        more, _ = self._generate_single_turn(  # type: ignore[no-untyped-call]
            given, None, {}, num_generations=1
        )
        masks = [[1] * len(tokens) for tokens in ids]
        self.fed_back = [list(range(len(tokens) - 1)) for tokens in ids]
        for i, turn in zip(chosen, more, strict=True):
            kept = turn[: 9 - len(ids[i]) - 2]
            begin = len(ids[i]) + 2
            self.fed_back[i] += range(begin, begin + min(len(turn) - 1, len(kept)))
            masks[i] += [0, 0] + [1] * len(kept)
            ids[i] = [*ids[i], 5, 6, *kept]
        self.masks = masks
        return prompt_ids, ids, masks, *others


def test_what_tools_wrote_is_not_recorded_and_counts_as_a_position(tmp_path: Path) -> None:
    """Tokens behind a tool's answer keep their place in the completion, in every pass."""
    trainers: list[ToolTrainer] = []

    def remembered(*args: Any, **kwargs: Any) -> ToolTrainer:
        trainers.append(ToolTrainer(*args, **kwargs))
        return trainers[0]

    recorded = recorded_run(tmp_path, kind=remembered, num_iterations=2)
    lines, trainer = joined(recorded), trainers[0]
    assert set(lines) == {(1, False, completion) for completion in range(8)}
    assert any(c.length == 9 for c in lines.values())
    of_model = {
        key: [i for i, of_model in enumerate(trainer.masks[key[2]]) if of_model] for key in lines
    }
    for name in ("loss", "logprob"):
        assert_tokens(by_pass(recorded, name), of_model)
    assert_tokens(by_pass(recorded, "decode"), {key: trainer.fed_back[key[2]] for key in lines})
    prompts = {key: range(len(c.prompt_ids or ())) for key, c in lines.items()}
    assert_tokens(by_pass(recorded, "prefill"), prompts)
    assert_residuals(recorded.records, lines, policy=model(seed=1))


def test_the_self_test_says_what_each_pass_gave(tmp_path: Path) -> None:
    """The passes that were asked for, their tokens by layer, and why one has none."""
    recorded = recorded_run(tmp_path, max_steps=1)
    notes = [line for line in recorded.control() if isinstance(line, Note)]
    (passes,) = [note.detail["passes"] for note in notes if note.kind == "self_test"]
    assert list(passes) == list(PASSES)
    for name in ("loss", "prefill", "decode"):
        tokens = len(by_pass(recorded, name)) // len(LAYERS)
        assert passes[name] == {"tokens": {str(layer): tokens for layer in LAYERS}}
    assert "multiple of" in passes["logprob"]["why"]
    assert "beta is 0" in passes["reference"]["why"]
    assert "eval_strategy" in passes["eval"]["why"]


def test_what_the_bound_on_memory_costs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generation that does not fit keeps its first tokens, and the log says what is missing."""
    monkeypatch.setattr(attempt, "_HELD_SHARE", 2_000 / (256 << 20))
    recorded = recorded_run(tmp_path, passes=("decode",), max_steps=1)
    lines = joined(recorded)
    assert len(lines) == 8
    assert_tokens(recorded.records, {key: range(min(1, c.length - 1)) for key, c in lines.items()})
    notes = {note.kind: note.detail for note in recorded.control() if isinstance(note, Note)}
    assert (notes["pass_cut"]["pass"], notes["pass_cut"]["step"]) == ("decode", 1)
    assert notes["pass_cut"]["tokens"] >= sum(max(0, c.length - 2) for c in lines.values())
    assert "queue_bytes" in notes["self_test"]["passes"]["decode"]["why"]
    assert not recorded.metrics[0].health


def test_methods_are_wrapped_for_the_passes_that_need_them(tmp_path: Path) -> None:
    """Nothing beside the loss pass's three unless asked for; `detach` gives all of them back."""
    further = {
        "prefill": "_generate_single_turn",
        "reference": "_get_per_token_logps_and_entropies",
        "eval": "compute_loss",
    }
    trainer = grpo_trainer(tmp_path)
    before = set(vars(trainer))
    three = {"_calculate_rewards", "_generate_and_score_completions", "compute_loss"}
    for name, method in further.items():
        callback = observe(trainer, sae=saes(), top_k=TOP_K, passes=("loss", name))
        assert set(vars(trainer)) - before == three | {method}
        callback.detach()
        assert set(vars(trainer)) == before


def test_names_that_are_no_pass_are_refused() -> None:
    """The error names the value, what is allowed, and how to write it."""
    for wrong in (("loss", "decod"), "decode"):
        with pytest.raises(OptionError, match=r"logprob, reference.*got .*deco") as refused:
            SidecarCallback(passes=wrong)
        assert 'passes=("loss", "decode")' in str(refused.value.hint)
    with pytest.raises(OptionError, match="first, all, got 'last'"):
        SidecarCallback(iterations="last")
