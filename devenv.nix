# The development environment: https://devenv.sh. What checkouts of one host would fight over runs in
# the primary one only. The role is found as bin/detect-worktree-role.sh finds it.
{ pkgs, lib, config, ... }:

let
  root = config.devenv.root;
  dotGit = "${root}/.git";

  # `.git` of a linked worktree, a submodule or a clone with a separate git directory is a file.
  named = builtins.match "gitdir: ([^\n]*)\n*" (builtins.readFile dotGit);
  path = builtins.head named;
  gitDir = if lib.hasPrefix "/" path then path else "${root}/${path}";
  isBelowWorktrees = builtins.match ".*/worktrees/[^/]+" gitDir != null;
  # Only linked worktrees have the file `commondir`; of one that was pruned nothing but the name is left.
  isLinked = isBelowWorktrees
    && (builtins.pathExists "${gitDir}/commondir" || !builtins.pathExists gitDir);

  detectedRole =
    if builtins.pathExists "${dotGit}/HEAD" then "primary"
    else if !builtins.pathExists dotGit then
      throw "Expected a git checkout, got `${root}`, which holds no .git. Set AEGIR_WORKTREE_ROLE to primary or secondary."
    else if named == null then
      throw "Expected `gitdir: PATH` in `${dotGit}`. Run: git worktree repair"
    else if isLinked then "secondary"
    else "primary";

  wantedRole = builtins.getEnv "AEGIR_WORKTREE_ROLE";
  worktreeRole =
    if wantedRole == "" then detectedRole
    else if wantedRole == "primary" || wantedRole == "secondary" then wantedRole
    else throw "Expected primary or secondary in AEGIR_WORKTREE_ROLE, got `${wantedRole}`.";

  isPrimary = worktreeRole == "primary";
in
{
  env.AEGIR_WORKTREE_ROLE = worktreeRole;

  packages = [ pkgs.curl pkgs.git pkgs.gnumake pkgs.jq pkgs.just pkgs.python311 ];

  enterShell = ''
    export AEGIR_WORKTREE_ROLE=${worktreeRole}
  '' + lib.optionalString (!isPrimary) ''
    echo "This is a secondary checkout: postgres, qdrant, gateway and pages run in the primary."
    echo "Watch from here with: just ui-dev"
  '';

  services = lib.optionalAttrs isPrimary {
    postgres = {
      enable = true;
      listen_addresses = "127.0.0.1";
      port = 5555;
    };
  };

  processes = lib.optionalAttrs isPrimary {
    qdrant.exec = ''
      exec env QDRANT__SERVICE__HOST=127.0.0.1 QDRANT__SERVICE__HTTP_PORT=6355 \
        QDRANT__STORAGE__STORAGE_PATH=${config.devenv.state}/qdrant ${pkgs.qdrant}/bin/qdrant
    '';
    gateway.exec = "exec just gateway";
    ui-dev.exec = "exec just ui-dev";
  };
}
