"""Search for the top of a hill, and be watched: optimise.py RUN [ITERATIONS] [SECONDS EACH]."""

import math
import random
import sys
import time

from aegir_stream.progress import ProgressFeed

run, iterations, pause_s = (*sys.argv[1:], *("runs/hill", "100", "0.2")[len(sys.argv) - 1 :])
chance = random.Random(0)  # noqa: S311 - a search, not a secret
best, place = -math.inf, 0.0

with ProgressFeed(run, total=int(iterations)) as feed:
    for i in range(int(iterations)):
        candidate = place + chance.gauss(0, 1)
        score = math.exp(-((candidate - 7) ** 2) / 20)
        if score > best:
            best, place = score, candidate
        feed.append(iter=i, score=score, program_id=f"x={candidate:.3f}", calls=i + 1)
        time.sleep(float(pause_s))
