"""Mix streams of training data by weight, keep recurrent states, and see whether both work.

For example::

    mixer = StreamMixer([Reader(name="web", weight=3, open=open_web), ...], seed=0)
    ledger = StateLedger(StoreLimits(capacity=4096), shape=(layers, width))
    observation = MixObservation(mixer=mixer, ledger=ledger)
    observation.begin_step(1)
    for step, batch in enumerate(DataLoader(mixer, batch_size=8), start=1):
        states = ledger.read(keys).states  # from whichever rank keeps them
        ...
        ledger.write(keys, new_states, starts=starts)
        metrics = observation.collect(step)
        observation.begin_step(step + 1)  # before the next batch is fetched

Counts are kept where picks are made, drained once per logged step, summed over all ranks and only
then divided.
"""

from aegir_adapters.mixing.bands import Band, healthy_bands
from aegir_adapters.mixing.formulas import SCALARS, MixTotals, Targets, mix_scalars
from aegir_adapters.mixing.ledger import Recalled, StateLedger, merge_ledger_states
from aegir_adapters.mixing.mixer import StreamMixer
from aegir_adapters.mixing.observation import LedgerBands, MixObservation
from aegir_adapters.mixing.reader import Reader, ReaderError
from aegir_adapters.mixing.reduction import (
    aggregate_step_metrics,
    reduce_loss_metrics,
    total_step_metrics,
)
from aegir_adapters.mixing.state import StateError, merge_states
from aegir_adapters.mixing.store import LEDGER_METRICS, StoreLimits

__all__ = [
    "LEDGER_METRICS",
    "SCALARS",
    "Band",
    "LedgerBands",
    "MixObservation",
    "MixTotals",
    "Reader",
    "ReaderError",
    "Recalled",
    "StateError",
    "StateLedger",
    "StoreLimits",
    "StreamMixer",
    "Targets",
    "aggregate_step_metrics",
    "healthy_bands",
    "merge_ledger_states",
    "merge_states",
    "mix_scalars",
    "reduce_loss_metrics",
    "total_step_metrics",
]
