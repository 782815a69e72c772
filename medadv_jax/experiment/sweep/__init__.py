"""Many runs from one command: a grid of cells, each an ordinary run in a folder of its own.

`run_sweep` is the command. `grids` says which cells there are, `cells` what their folders hold,
`launchers` starts them, `scheduler` decides when, `journal` records it, `display` shows it.
"""
