"""Many runs from one command: a grid of cells, each an ordinary run in a folder of its own.

`grids` says which cells, `cells` what stands of each in its folder, `launchers` where they run,
`scheduler` when, `journal` what is remembered of them, `display` what a person sees.
"""
