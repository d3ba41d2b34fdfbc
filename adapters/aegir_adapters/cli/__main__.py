"""`python -m aegir_adapters.cli`."""

from __future__ import annotations

from aegir_adapters.cli import main

if __name__ == "__main__":
    main()
