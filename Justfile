# Recipes that know in which checkout they run. `make help` lists what needs no such knowledge.
#
# A secondary checkout (made by `git worktree add`) leaves ports and directories to the primary. To
# use some of its own there: ALLOW_SECONDARY=1, and the variable that the refusal names.

set positional-arguments

# Found when this file is read; a value that is no role ends every recipe.
worktree_role := `bin/detect-worktree-role.sh`
# What detected it here holds for whatever a recipe starts.
export AEGIR_WORKTREE_ROLE := worktree_role

aegir := ".venv/bin/aegir"
gateway_url := env("AEGIR_GATEWAY_URL", "http://127.0.0.1:" + env("AEGIR_GATEWAY_PORT", "8091"))

# list the recipes
default:
    @just --list --unsorted

# role of this checkout, what it would use, and who holds that
whoami *args:
    @if [ -x {{ aegir }} ]; then {{ aegir }} whoami "$@"; else echo {{ worktree_role }}; fi

# serve a run, or all runs under a root: viewer, API, record stream
gateway *args: (_own "port 8091" "AEGIR_GATEWAY_PORT") _installed
    {{ aegir }} serve --guarded "$@"

# train with a preset and record it: just p5-train --policy-preset tiny
p5-train *args: (_own "the output directory /raid/checkpoints/p5" "AEGIR_P5_OUTPUT_DIR") _installed
    {{ aegir }} train --guarded "$@"

# the pages of this checkout, reloaded when they change, over the gateway's data
ui-dev *args: _installed
    {{ aegir }} ui "$@"

# gateway and pages in a primary; a hint in a secondary
up *args: _installed
    {{ aegir }} up "$@"

# ask a gateway what the smoke test of a pair of checkouts asks
smoke:
    curl -sS --fail {{ gateway_url }}/api/p5/runs | jq '.count, .rows[0]'
    curl -sSN --max-time 10 {{ gateway_url }}/api/p5/sae/stream | head -20

# bring the environments up to date with pyproject.toml and constraints.txt
sync:
    make .venv/.dev .venv-core/.test

# run all tests
test *args:
    make test ARGS="$*"

# check style, types, import directions and spelling
lint:
    make lint

# train a small policy with GRPO in a directory of its own, and watch it
demo *args:
    make demo ARGS="$*"

# refuse in a secondary checkout, before anything is installed or started
[private]
_own resource variable:
    @if [ {{ worktree_role }} = secondary ] && [ "${ALLOW_SECONDARY:-}" != 1 ]; then \
      echo "aegir: this checkout is a secondary one, and {{ resource }} is left to the primary." >&2; \
      echo "  Run this there, or here with: ALLOW_SECONDARY=1 {{ variable }}=ANOTHER" >&2; \
      exit 2; \
    fi

[private]
_installed:
    @[ -x {{ aegir }} ] || make .venv/.demo
