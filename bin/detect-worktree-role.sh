#!/bin/sh
# Prints the role of a git checkout, `primary` or `secondary`, for a Justfile, a devenv.nix or a prompt:
#
#     bin/detect-worktree-role.sh [DIRECTORY]
#
# The nearest `.git` at or above DIRECTORY (the working directory, if left out) decides: a directory is
# the repository's own checkout, a file is a linked worktree if it names a git directory that
# `git worktree add` made. Submodules and clones with --separate-git-dir have a file as well; they are
# primary. AEGIR_WORKTREE_ROLE overrides what is detected.
#
# Exit codes: 0 printed, 1 DIRECTORY lies in no checkout, 2 wrong value or command line.
#
# No process is started and no state is kept. The library follows the same steps
# (adapters/aegir_adapters/worktree/place.py), and the tests compare the two.

set -u

newline='
'

fail() {
    printf 'detect-worktree-role: %s\n' "$2" >&2
    exit "$1"
}

tell() {
    printf '%s\n' "$1"
    exit 0
}

# Sets `named` to the path that the file $1 holds behind `gitdir: `. It may hold line breaks.
read_link() {
    {
        IFS= read -r named || [ -n "$named" ]
        while IFS= read -r line || [ -n "$line" ]; do
            named=$named$newline$line
        done
    } 2>/dev/null <"$1" || fail 1 "$1 cannot be read"
    while [ "${named%"$newline"}" != "$named" ]; do
        named=${named%"$newline"}
    done
    case $named in
        'gitdir: '?*) named=${named#gitdir: } ;;
        *) fail 1 "Expected \`gitdir: PATH\` in $1; git worktree repair may mend it" ;;
    esac
}

# Sets `path` to $1 without what may stand behind its last name.
trim() {
    path=$1
    while :; do
        case $path in
            */) path=${path%/} ;;
            */.) path=${path%/.} ;;
            *) break ;;
        esac
    done
}

# Tells the role of the checkout whose `.git` is the file $1/.git.
tell_linked() {
    read_link "$1/.git"
    case $named in
        /*) ;;
        *) named=$1/$named ;;
    esac
    if cd -P "$named" 2>/dev/null; then
        path=${PWD%/*}
        # git writes `commondir` in the git directories of linked worktrees only.
        [ -f commondir ] || tell primary
    else
        # The worktree was pruned: its name has to do.
        trim "$named"
        trim "${path%/*}"
    fi
    [ "${path##*/}" = worktrees ] && tell secondary
    tell primary
}

[ $# -le 1 ] || fail 2 "Expected at most one directory, got $# arguments"

case ${AEGIR_WORKTREE_ROLE:-} in
    '') ;;
    primary | secondary) tell "$AEGIR_WORKTREE_ROLE" ;;
    *) fail 2 "Expected \`primary\` or \`secondary\` in AEGIR_WORKTREE_ROLE, got \`$AEGIR_WORKTREE_ROLE\`" ;;
esac

directory=${1:-.}
case $directory in
    /*) ;;
    *) directory=./$directory ;; # else `-` and CDPATH would have a say
esac
cd -P "$directory" 2>/dev/null || fail 1 "Expected a directory, got \`${1:-.}\`"
case $PWD in
    /*) ;;
    *) fail 1 "The working directory is gone" ;;
esac

top=${PWD%/}
while :; do
    if [ -e "$top/.git/HEAD" ] || [ -h "$top/.git/HEAD" ]; then
        tell primary
    elif [ -f "$top/.git" ]; then
        tell_linked "$top"
    fi
    [ -n "$top" ] || break
    top=${top%/*}
done
fail 1 "Expected a git checkout, got \`$PWD\`: neither it nor a directory above it holds \`.git\`"
