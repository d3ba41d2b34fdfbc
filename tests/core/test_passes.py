from __future__ import annotations

from typing import Any

from aegir_stream.events import Completion, PassName, SAELogRecord
from aegir_stream.views import HeatmapView, LossVsRewardView


def record(pass_: PassName | None, *, loss: float) -> SAELogRecord:
    """Return the record of one token in a pass."""
    return SAELogRecord(
        step=1,
        token_index=0,
        layer_index=2,
        top_feature_indices=(3,),
        top_feature_activations=(loss,),
        reconstruction_loss=loss,
        completion=0,
        pass_=pass_,
    )


def completion(pass_: PassName | None, *, reward: float) -> Completion:
    """Return a completion that was trained on, or one of an evaluation."""
    facts: dict[str, Any] = {"step": 1, "completion": 0, "rank": 0, "group": 0, "rewards": {}}
    return Completion(**facts, reward=reward, advantage=0.0, length=1, terminated=True, pass_=pass_)


def test_views_look_at_one_pass_of_a_token() -> None:
    """A token that was read in several passes counts once, in the loss pass unless asked."""
    records = [record(None, loss=1.0), record("decode", loss=10.0), record("eval", loss=100.0)]
    for pass_, expected in {"loss": 1.0, "decode": 10.0, "eval": 100.0}.items():
        view = HeatmapView(pass_=pass_)  # type: ignore[arg-type]
        assert list(view.fold(view.initial(), records).mean_top_activation()) == [(2, 1, expected)]


def test_losses_and_rewards_of_an_evaluation_are_not_those_of_training() -> None:
    """Completions of an evaluation are numbered apart: the same id is another completion."""
    events: list[SAELogRecord | Completion] = [
        completion(None, reward=0.5),
        completion("eval", reward=0.9),
        record(None, loss=1.0),
        record("eval", loss=100.0),
    ]
    view = LossVsRewardView()
    (point,) = view.fold(view.initial(), events).points()
    assert (point.loss, point.reward) == (1.0, 0.5)
