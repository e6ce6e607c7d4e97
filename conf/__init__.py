"""The config groups, as a package: Hydra apps take them by `hydra.searchpath=[pkg://lit_distill.conf]`."""
