"""Completion ids that count anew with each optimizer step."""

from __future__ import annotations

__all__ = ["StepIds"]


class StepIds:
    """Gives out ids that are unique within a step.

    A generation that starts in a step which still trained on the one before counts on from its ids.

    Attributes:
        step: optimizer step that was entered last.
        next: first id that is free in it.
    """

    def __init__(self) -> None:
        self.step = -1
        self.next = 0

    def enter(self, step: int) -> int:
        """Begin to count anew if the step is another one; return it."""
        if step != self.step:
            self.step, self.next = step, 0
        return step

    def use(self, end: int) -> None:
        """Take note that the ids before `end` are in use."""
        self.next = max(self.next, end)
